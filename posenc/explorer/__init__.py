"""One page that shows where each head of a model looks, and what position contributes to it.

`posenc explore` writes it. The page holds queries, keys and biases, and computes attention itself
when a token is clicked; `front/` is its source, `page.html` what is built of it.
"""

from posenc.explorer.page import Exhibit, Picture, make_page

__all__ = ["Exhibit", "Picture", "make_page"]
