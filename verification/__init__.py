"""Exhaustive checks of protocols, on the code that ships: see docs/verification.md."""
