"""The commands of each room: one module a room, whose COMMANDS maps a name to a frozen dataclass with run().

A module whose only command bears the module's own name is a command of the top level (`whence demo`).
"""
