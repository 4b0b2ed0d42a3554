"""Templates to HTML that needs nothing but itself: styles, scripts, pictures and videos are inside the file.

Every value is escaped by the template engine. The page's own policy forbids it the network and any script but ours.
"""

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, script: str | None = None, **values: Any) -> str:
    """One page; `script` names a file beside the templates, the only one that may run in it."""
    text = static_file(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _environment().get_template(template).render(script=Markup(text), script_digest=digest, **values)


def render_part(template: str, block: str, **values: Any) -> Markup:
    """One block of a page."""
    found = _environment().get_template(template)
    return Markup("".join(found.blocks[block](found.new_context(values))))


def static_file(name: str) -> str:
    """A style sheet or script beside the templates."""
    return (files("ltxtrain_services.pages") / "templates" / name).read_text("utf-8")


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ltxtrain_services.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
