"""Figures from plain data, as matplotlib objects: no torch, no pyplot, nothing global.

`reality`, `toy`, `search`, `training`, `retrieval` and `comparison` each turn plain data into a `Figure`; `style` has
every colour and size once; `save` writes PNG, SVG and HTML; `collect` finds the data among results and reference files.
"""

NAMES = {
    "figure_1": "three toy embeddings and their scores",
    "figure_2a": "reported Precision@1 over the years",
    "figure_2b": "measured Precision@1 over the years",
    "figure_2b_map_at_r": "measured MAP@R over the years",
    "figure_3a": "improvement over Contrastive, papers and reality",
    "figure_3b": "improvement over Triplet, papers and reality",
    "optimisation": "each search: trials and best so far",
    "learning_curves": "each fold: training loss and validation MAP@R",
    "projection": "test embeddings in the plane",
    "neighbors": "queries and their nearest images",
    "pairwise_tests": "difference of every two losses, tested",
}
"""What can be drawn, and what it shows."""
