"""The source paper's evaluation, cell by cell: its published numbers beside ours.

`published` holds its tables, `cells` and `plan` what is run, `run` runs it, `comparison` and
`report` say how far it came out.
"""
