"""What is made of results: statistics, tables, figures, the site. Needs no torch."""
