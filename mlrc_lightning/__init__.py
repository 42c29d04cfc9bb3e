"""The protocol of "A Metric Learning Reality Check" (Musgrave et al., ECCV 2020) on today's stack.

Importing the package imports nothing heavy: torch, Lightning and timm come with the modules that need them.
"""

__version__ = "0.1.0"
