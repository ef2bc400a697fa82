"""The front end of pages that open from disk, and how data are written for it.

A page opened from disk may not fetch JSON, only load scripts. All data are therefore scripts that
assign to `window.EXPLORER`; the front end (`front`) loads each when it is first asked for.
"""
