"""How results look and where they are written: figures, tables, pages, pictures.

`finish` gives figures their style, `write_study` writes one study in every format, `render_report`
makes a page of several studies, and `training_page` shows a training run.
"""
