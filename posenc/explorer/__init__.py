"""One page that shows where each head of a model looks, and what position contributes to it.

`posenc explore` writes it. The page holds queries, keys and biases in 16 bits and computes attention
itself, when a token is clicked; `front/` is its source, `page.html` what is built of it.
"""

from posenc.explorer.page import Picture, Subject, make_page

__all__ = ["Picture", "Subject", "make_page"]
