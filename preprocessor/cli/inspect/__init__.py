"""`preprocessor inspect`: one HTML file that shows what a prompt became.

    a prompt (`origins`) → the page as plain data (`page`, built by `build`) → HTML (`render`, `items`)

`frames` rebuilds frames from the rows of the pixel tensor · `tokens` the token map · `tables` figures, settings and their
sources · `markup` escapes · `png` encodes. `page.html`, `page.css` and `page.js` are copied into each page, which loads nothing.
"""

from preprocessor.cli.inspect.command import run

__all__ = ["run"]
