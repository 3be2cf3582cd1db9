"""The commands: one module per group, whose COMMANDS maps a name to a frozen dataclass with run().

A module whose only command has the module's own name is a command of the top level (`whence demo`).
"""
