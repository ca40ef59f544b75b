"""The small endpoints: models, health, version, metrics, and text to token ids and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from indexshare import __version__
from indexshare.config.arguments import shown
from indexshare.engine.admission import check_prompt
from indexshare.serve.body import Body
from indexshare.serve.errors import ApiError, bad
from indexshare.serve.service import Service, read_body

_PAGE = Path(__file__).parent / "page.html"
_CHAT = ("messages", "tools", "chat_template_kwargs", "reasoning_effort", "add_generation_prompt")


async def page(request: Request) -> Response:
    """A conversation in the browser: one file, which asks this server alone."""
    return Response(_PAGE.read_bytes(), media_type="text/html", headers={"Cache-Control": "no-cache"})


async def health(request: Request) -> Response:
    """200 while the engine runs, 503 while it does not."""
    service: Service = request.app.state.service
    if service.stopping or not service.engine.is_ready:
        state = "stopping" if service.stopping else "starting"
        return JSONResponse({"status": state, "restarts": service.engine.restarts}, status_code=503)
    return JSONResponse({"status": "ok", "restarts": service.engine.restarts})


async def version(request: Request) -> Response:
    """Of this program."""
    return JSONResponse({"version": __version__})


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(service.engine), media_type="text/plain; version=0.0.4; charset=utf-8")


def _about(service: Service, name: str) -> dict[str, Any]:
    about = {"id": name, "object": "model", "created": service.started, "owned_by": "indexshare"}
    template = service.model.template
    return about | {
        "root": service.model.name,
        "max_model_len": service.model.max_context,
        "chat_template_variables": [] if template is None else sorted(template.variables),
    }


async def models(request: Request) -> Response:
    """All names that requests may use."""
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_about(service, name) for name in service.model.names]})


async def model(request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    service.model.check_name(name)
    return JSONResponse(_about(service, name))


async def tokenize(request: Request) -> Response:
    """Token ids of a text (`prompt`), or of a conversation (`messages`)."""
    service: Service = request.app.state.service
    known = ("model", "prompt", "add_special_tokens", "return_token_strs", *_CHAT)
    body = Body(await read_body(request, service.limits), known)
    service.model.check_name(body.text("model"))
    if "messages" in body:
        prompt = service.model.chat_prompt(
            body.get("messages"),
            tools=body.get("tools"),
            effort=body.text("reasoning_effort"),
            variables=body.object("chat_template_kwargs"),
            answer_follows=body.boolean("add_generation_prompt", True),
        )
        ids = prompt.ids
    else:
        text = body.text("prompt")
        if text is None:
            raise bad("prompt is missing; expected a text, or messages", "prompt")
        tokenizer = service.model.tokenizer
        try:
            whole = body.boolean("add_special_tokens", True)
            ids = tokenizer.encode_prompt(text) if whole else tokenizer.encode(text)
        except ValueError as error:
            raise bad(str(error), "prompt") from None
    reply: dict[str, Any] = {"count": len(ids), "max_model_len": service.model.max_context, "tokens": ids}
    if body.boolean("return_token_strs"):
        reply["token_strs"] = [service.model.token_text(i) for i in ids]
    return JSONResponse(reply)


async def detokenize(request: Request) -> Response:
    """Text of token ids (`tokens`)."""
    service: Service = request.app.state.service
    body = Body(await read_body(request, service.limits), ("model", "tokens"))
    service.model.check_name(body.text("model"))
    ids = body.get("tokens")
    if not isinstance(ids, list):
        raise bad(f"tokens is {shown(ids)}; expected a list of token ids", "tokens")
    try:
        ids = check_prompt(ids, service.model.tokenizer.vocab_size, "tokens") if ids else []
    except ValueError as error:
        raise bad(str(error), "tokens") from None
    return JSONResponse({"prompt": service.model.tokenizer.decode(ids)})


async def not_here(request: Request, error: Exception) -> Response:
    """Where there is no endpoint."""
    status = getattr(error, "status_code", 404)
    path = request.url.path
    said = f"{request.method} {path} is not served here; /v1/models, /v1/chat/completions and others are"
    return JSONResponse(ApiError(status, said, code="not_found").openai(), status_code=status)
