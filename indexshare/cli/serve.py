"""`indexshare serve`: a model for the clients of OpenAI's and Anthropic's interfaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from indexshare.cli.options import ModelOptions
from indexshare.cli.output import note, write


def serve(
    model: str = "nano",
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_name: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    api_key_env: str | None = None,
    max_context: int | None = None,
    max_batch: int = 64,
    max_requests: int = 256,
    max_body_mib: float = 64.0,
    grace: float = 30.0,
    model_options: ModelOptions | None = None,
) -> None:
    """Serve a model over HTTP: OpenAI's interface (chat, completions, responses) and Anthropic's (messages).

    The first line on standard output is the address, once requests are taken. Ctrl+C lets running requests finish.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    host
        Address to listen at; 0.0.0.0 for all of this machine's.
    port
        Port to listen at, 0 for any that is free.
    served_name
        What requests call the model; may be given several times. The directory's name unless given.
    api_key_env
        Environment variable with the keys of clients, separated by commas. Anybody may use the server unless given.
    max_context
        Most tokens of one request, prompt and answer together. All that the model was made for unless given.
    max_batch
        Most sequences generating at a time.
    max_requests
        Most requests running or waiting; further ones are answered with 429.
    max_body_mib
        Most that the body of a request holds, in MiB.
    grace
        Seconds that running requests have to finish when the server stops.
    """
    from indexshare.config.environment import read_secret

    options = model_options or ModelOptions()
    if options.model != ModelOptions.model and options.model != model:
        raise ValueError(f"MODEL is {model!r} and --model is {options.model!r}; give one of them")
    options = replace(options, model=model)
    keys = [] if api_key_env is None else [key.strip() for key in read_secret(api_key_env, "--api-key-env").split(",")]
    run_server(
        options, host=host, port=port, served_name=served_name, keys=[key for key in keys if key],
        engine={"max_context": max_context, "max_batch": max_batch},
        limits={"requests": max_requests, "body_bytes": int(max_body_mib * 2**20), "grace_s": grace},
    )  # fmt: skip


def run_server(
    options: ModelOptions,
    *,
    host: str,
    port: int,
    served_name: tuple[str, ...],
    keys: list[str],
    engine: dict[str, object],
    limits: dict[str, float],
) -> None:
    """Load and serve; ValueError for what is wrong, before the model is loaded."""
    try:
        from indexshare.serve.model import ServedModel
        from indexshare.serve.run import open_socket, serve
        from indexshare.serve.service import Limits
        from indexshare.serve.wire import EngineSettings
    except ImportError as error:
        raise ValueError(f"the server needs the package {error.name}; run: pip install 'indexshare[serve]'") from None
    for name, value in limits.items():
        if value < 0:
            raise ValueError(f"{name.replace('_', ' ')} is {value:g}; expected 0 or more")
    served = ServedModel.load(options.model, served_name)
    if served.template is None:
        note("this model has no chat template: it completes texts (/v1/completions) and knows no conversations")
    with open_socket(host, port) as listening:
        serve(
            served,
            EngineSettings(model=options.model, options=options.engine() | engine),
            listening,
            limits=Limits(**limits),  # type: ignore[arg-type]
            keys=keys,
            announce=lambda address: write(address + "\n"),
            note=note,
        )
