"""The source paper's evaluation, cell by cell: its published numbers beside ours.

`published` holds its tables, `cells` what can be run, `evaluation` and `plan` what is left to run
and its cost. `run` runs a cell; `comparison`, `study` and `report` say how it came out.
"""
