"""The store: arrays on disk under keys. Imports neither torch nor JAX."""
