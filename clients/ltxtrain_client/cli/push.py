"""`ltxtrain push`: publish a job's LoRA."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, fail, run, settings_of
from ltxtrain_client.errors import OutputMissing
from ltxtrain_client.progress import files_text, print_json
from ltxtrain_client.publish import Published, PublishFailed, collect
from ltxtrain_client.publish import push as push_folder
from ltxtrain_client.suite import open_suite


def push(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="jobs/ID or the ID alone.", autocompletion=job_names)],
    repository: Annotated[
        str, typer.Argument(help="Repository of the hub, which is created if need be.", metavar="OWNER/NAME")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create the repository for yourself alone.")] = False,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license", help="Licence that the card names.", show_default="that of LTX-2, which holds for its LoRAs"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Put the files here to look at; publish nothing.", file_okay=False)
    ] = None,
    json_lines: Json = False,
) -> None:
    """Publish a job's LoRA on the Hugging Face hub, with a model card, settings, preview and ComfyUI workflow.

    HF_TOKEN (or `hf auth login`) says who you are. Paths of your machines and URLs of your data are left out.
    """
    try:
        published = run(_push(settings_of(context), job_name(name), repository, private, license_name, out))
    except (OutputMissing, PublishFailed) as error:
        raise fail(Exit.REFUSED, str(error)) from None
    if json_lines:
        print_json({"url": published.url, "files": list(published.files)})
    elif out is not None:
        print(files_text([out / file for file in published.files]))
    else:
        print(published.url)


async def _push(
    settings: ClientSettings, name: str, repository: str, private: bool, license_name: str | None, out: Path | None
) -> Published:
    async with open_suite(settings) as suite:
        job = await suite.train.get_job(name)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return Published(url="", files=await collect(suite.train, job, out, license_name=license_name))
        with tempfile.TemporaryDirectory(prefix="ltxtrain-push-") as folder:
            files = await collect(suite.train, job, Path(folder), license_name=license_name)
            url = await push_folder(Path(folder), repository, private=private, message=f"LoRA of {name}")
            return Published(url=url, files=files)
