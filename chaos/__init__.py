"""Faults against the real local system, watched from the outside: `markserve chaos`."""
