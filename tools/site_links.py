"""For the site: a link of a page to a file of the repository that is no page becomes that file's name."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for each page."""
    return _OUTSIDE.sub(
        lambda found: f"`{found[2]}`" if found[1] in found[2] else f"{found[1]} (`{found[2]}`)", markdown
    )
