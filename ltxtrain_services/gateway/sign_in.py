"""Sign-in by a token of the services, kept in a cookie; and the answer that each page of a reader is."""

import base64
import binascii
import json
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import web
from ltxtrain_client.errors import CallError, Unauthenticated

from ltxtrain_services.gateway.http import SAFE, SETTINGS, SUITE, Handler, body_of, is_https
from ltxtrain_services.gateway.suite import Caller
from ltxtrain_services.pages.render import render
from ltxtrain_services.runtime.hosted_form import http_status

JSON = "application/json"
COOKIE = "ltxtrain-token"
# A token has 512 characters at most.
MAX_FORM_BYTES, MAX_FORM_FIELDS = 16 * 2**10, 10
COOKIE_SECONDS = 30 * 24 * 3600


def signed_in(handler: Handler) -> Handler:
    """A page that asks for a token where the services do, and shows their other faults as a page."""

    async def page(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Unauthenticated:
            # An action is not repeated by an address: back to the page that offers it.
            following = request.path_qs if request.method in SAFE else request.path.rpartition("/")[0]
            raise web.HTTPSeeOther(f"/sign-in?next={quote(following, safe='')}") from None
        except CallError as error:
            return html_page(
                request, "fault.html", status=http_status(error), message=error.message, reason=error.reason
            )

    return page


@web.middleware
async def faults_as_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Show a person the fault that a program is told: a wrong address, another site's name, too many requests."""
    response = await handler(request)
    if not isinstance(response, web.Response) or response.status < 400 or response.content_type != JSON:
        return response
    if request.method not in SAFE or "text/html" not in request.headers.get("Accept", ""):
        return response
    fault = json.loads(response.text or "{}")
    page = html_page(
        request, "fault.html", status=response.status, message=fault["message"], reason=fault.get("reason", "")
    )
    page.headers.update({name: text for name, text in response.headers.items() if name not in page.headers})
    return page


async def sign_in_page(request: web.Request) -> web.StreamResponse:
    return html_page(request, "sign_in.html", next=local_path(request.query.get("next", "")), message="")


async def sign_in(request: web.Request) -> web.StreamResponse:
    """Keep a token that the services know in the browser, out of reach of scripts."""
    given = _fields(await body_of(request, MAX_FORM_BYTES))
    token, following = given.get("token", "").strip(), local_path(given.get("next", ""))
    try:
        await check_token(request.app[SUITE].of(token))
    except (ValueError, Unauthenticated):
        return html_page(request, "sign_in.html", status=401, next=following, message="The token is not known here.")
    answer = web.HTTPSeeOther(following)
    kept = base64.urlsafe_b64encode(token.encode()).decode()
    answer.set_cookie(
        COOKIE, kept, max_age=COOKIE_SECONDS, httponly=True, samesite="Lax", secure=is_https(request), path="/"
    )
    raise answer


def _fields(body: bytes) -> dict[str, str]:
    """The fields of a form as our page sends it; none of one that another has made."""
    try:
        return dict(parse_qsl(body.decode(errors="replace"), max_num_fields=MAX_FORM_FIELDS))
    except ValueError:
        return {}


async def sign_out(request: web.Request) -> web.StreamResponse:
    answer = web.HTTPSeeOther("/sign-in")
    answer.del_cookie(COOKIE, path="/")
    raise answer


def caller_of(request: web.Request) -> Caller:
    """The caller by the cookie; without one, nobody in particular."""
    try:
        token = base64.urlsafe_b64decode(request.cookies.get(COOKIE, "").encode()).decode()
        return request.app[SUITE].of(token)
    except (ValueError, binascii.Error):
        return request.app[SUITE].of("")


def local_path(text: str) -> str:
    """A path of this gateway; /jobs for whatever leads elsewhere."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/jobs"
    plain = text.isascii() and text.isprintable() and "\\" not in text
    here = plain and not parts.scheme and not parts.netloc and text.startswith("/") and not text.startswith("//")
    return text if here else "/jobs"


def html_page(request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
    settings = request.app[SETTINGS]
    public = settings.public_endpoint
    store = public if "://" in public else f"{'https' if settings.s3_secure else 'http'}://{public}"
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self'; "
        f"media-src 'self' {store}; frame-src 'self' {store}; connect-src 'self' {store}; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    text = render(template, has_token=COOKIE in request.cookies, **values)
    headers = {"Content-Security-Policy": policy}
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=headers)


async def check_token(caller: Caller) -> None:
    async with aclosing(caller.train.list_jobs(page_size=1)) as listed:
        async for _ in listed:
            return
