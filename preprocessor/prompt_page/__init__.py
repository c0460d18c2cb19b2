"""One HTML file that shows what a prompt became.

    a prepared prompt (`facts`) → the page as plain data (`page`, built by `build`) → HTML (`render`, `items`)

`frames` rebuilds frames from the rows of the pixel tensor · `tokens` the token map · `tables` figures, settings and their
sources · `markup` escapes · `png` encodes. `page.html`, `page.css` and `page.js` are copied into each page, which loads nothing.
`form.html` asks a service for one.
"""
