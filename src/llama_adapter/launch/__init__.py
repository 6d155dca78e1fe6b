"""From configuration to objects: the only part of the package that knows Hydra."""
