"""Parts of pages that programs write: from a comment that names one to the next `<!-- end -->`."""

import re
from collections.abc import Callable


def replace_marked(text: str, comment: str, made: Callable[[re.Match[str]], str]) -> str:
    """The text with its parts made again that begin with this comment, a regular expression."""
    part = re.compile(rf"(?P<begin><!-- {comment} -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
    return part.sub(lambda found: f"{found['begin']}{made(found)}\n{found['end']}", text)
