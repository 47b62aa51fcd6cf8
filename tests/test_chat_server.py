"""Chat over real HTTP: against `transformers serve` on loopback, and through a proxy that does what servers and networks do on bad days."""
import ctypes
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request

import pytest

from fault_proxy import FaultProxy, completion, cut_off, hang, reset, status, text, trickle

from neuronbench.basics import cache_folder, content_key
from neuronbench.describe.descriptions import describe_frame
from neuronbench.describe.describe_and_dissect.prompts import Prompts
from neuronbench.embedded.world import WEIGHTS
from neuronbench.foundation.chat import Chat, Request, _address, _on_this_machine

KEY = "sk-a-very-secret-key-0123456789"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_VERSION", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.05)  # the client's own backoff, ten times as fast


@pytest.fixture
def proxy():
    with FaultProxy(always=completion("fine")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder) of `transformers serve` with the world's chat model, a process of its own."""
    folder = WEIGHTS / "chat"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = os.path.join(os.path.dirname(sys.executable), "transformers")
    command = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (tmp_path_factory.mktemp("serve") / "serve.log").open("w+")
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_healthy(address, process, log):
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"transformers serve did not start: {log.read()[-2000:]}")


def ask(content, **settings):
    messages = ({"role": "system", "content": "Name what you see."}, {"role": "user", "content": content})
    return Request(messages, **{"max_tokens": 8, **settings})


def one(proxy, content="a red boat", retries=1, **settings):
    """The only answer of a fresh chat through the proxy."""
    chat = Chat("tiny", base_url=proxy.url, **{"timeout": 30, **settings}, retries=retries)
    return chat.answers([ask(content)], progress=False)[0]


# The real server


def test_a_real_server_answers_and_is_asked_once(served):
    address, folder = served
    with FaultProxy(address) as proxy:
        chat = Chat(folder, base_url=proxy.url, concurrency=4, prices=(1.0, 2.0))
        requests = [ask(f"a {colour} boat", temperature=0, seed=seed) for colour in ("red", "blue", "red") for seed in (0, 1)]
        answers = chat.answers(requests, progress=False)
        assert all(answer.text and not answer.error and answer.model == folder for answer in answers)
        assert answers[0].text == answers[4].text and not answers[0].cached and answers[4].cached
        assert len(proxy.requests) == 4 and all(sent["max_tokens"] == 8 and "texts" not in sent for sent in proxy.requests)
        new = [answer for answer in answers if not answer.cached]
        assert chat.usage.prompt_tokens == sum(answer.prompt_tokens for answer in new) > 0
        assert chat.usage.cost == pytest.approx((chat.usage.prompt_tokens + 2 * chat.usage.completion_tokens) / 1e6)
        again = Chat(folder, base_url=proxy.url).answers(requests, progress=False)
        assert [answer.text for answer in again] == [answer.text for answer in answers] and all(answer.cached for answer in again)
        assert len(proxy.requests) == 4


def test_a_real_server_and_local_chat_agree(served):
    from neuronbench.foundation.local_chat import LocalChat

    address, folder = served
    requests = [ask(content, temperature=0) for content in ("a red boat", "night", "a small yellow house by day")]
    theirs, ours = Chat(folder, base_url=address).answers(requests, False), LocalChat(folder, device="cpu").answers(requests, False)
    assert [answer.text for answer in theirs] == [answer.text for answer in ours]
    assert [answer.prompt_tokens for answer in theirs] == [answer.prompt_tokens for answer in ours]


def test_the_worlds_chat_model_summarises_through_a_server(served):
    """What the method asks, over HTTP: ten captions that share a thing become its name."""
    address, folder = served
    captions = [f"a {colour} train in the {place} {time}" for colour in ("red", "blue", "green", "pink", "white") for place, time in (("city", "at night"), ("snow", "by day"))]
    request = Request(Prompts(examples=()).summarising(captions), temperature=0)
    answer = Chat(folder, base_url=address).answers([request], progress=False)[0]
    assert answer.error == "" and "train" in answer.text.split()


def test_faults_on_the_way_to_a_real_server_are_overcome(served):
    address, folder = served
    with FaultProxy(address) as proxy:
        proxy.faults = [status(503), reset, text(""), cut_off]
        answer = Chat(folder, base_url=proxy.url, retries=4).answers([ask("a red boat", temperature=0)], progress=False)[0]
        direct = Chat(folder, base_url=address).answers([ask("a red boat", temperature=0)], progress=False)[0]
        assert answer.text == direct.text and len(proxy.requests) == 5


def test_a_real_server_refuses_a_model_it_does_not_have(served):
    address, folder = served
    answer = Chat("another", base_url=address).answers([ask("a red boat")], progress=False)[0]
    assert answer.text == "" and answer.error.startswith(f"{address} answered 400: ") and "another" in answer.error


# What is asked again


@pytest.mark.parametrize("fault", [status(408), status(429), status(500), status(503), reset, cut_off, text(""), text('{"choices": [{"mess'),
                                   text("<html>busy</html>"), text("[" * 100_000)],
                         ids=["408", "429", "500", "503", "reset", "cut off", "empty", "truncated", "html page", "too deep"])
def test_a_passing_fault_is_overcome(proxy, fault):
    proxy.faults = [fault]
    assert one(proxy).text == "fine" and len(proxy.requests) == 2


@pytest.mark.parametrize("fault", [hang, trickle])
def test_a_hanging_server_is_asked_again(proxy, fault):
    proxy.faults = [fault]
    assert one(proxy, timeout=3).text == "fine" and len(proxy.requests) == 2


@pytest.mark.parametrize("fault, error", [
    (status(429, "slow down"), "{url} answered 429 (2 tries): 'slow down'"),
    (status(500, "x" * 5000), "{url} answered 500 (2 tries): '" + "x" * 200 + "...'"),
    (status(503, "<b>busy</b>\n\nlater"), "{url} answered 503 (2 tries): '<b>busy</b> later'"),
    (reset, "the connection to {url} broke before a whole answer came (2 tries): "),
    (text(""), "the connection to {url} broke before a whole answer came (2 tries): 'the body is not JSON'"),
    (text('{"choices": ['), "the connection to {url} broke before a whole answer came (2 tries): 'the body is not JSON'"),
    (hang, "no answer from {url} within 0.5 s (2 tries)"),
    (trickle, "no answer from {url} within 0.5 s (2 tries)"),
], ids=["429", "500", "503", "reset", "empty", "truncated", "hang", "trickle"])
def test_a_lasting_fault_is_one_sentence_and_is_not_kept(proxy, fault, error):
    proxy.always = fault
    answer = one(proxy, timeout=0.5 if fault in (hang, trickle) else 30)
    assert answer.text == "" and answer.error.startswith(error.format(url=proxy.url)) and len(answer.error) < 400
    assert len(proxy.requests) == 2
    proxy.always = completion("fine")
    assert one(proxy).text == "fine"


def test_retry_after_is_honoured(proxy):
    proxy.faults = [status(429, Retry_After="2")]
    assert one(proxy).text == "fine"
    assert proxy.times[1] - proxy.times[0] >= 2


def test_a_retry_after_of_an_hour_is_not_waited_for(proxy):
    proxy.always = status(429, "quota used up", Retry_After="3600")
    assert "429" in one(proxy).error and len(proxy.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_what_the_server_will_not_take_is_not_asked_again(proxy, code):
    proxy.always = status(code, '{"error": {"message": "no such model"}}')
    answer = one(proxy, retries=3)
    assert f"answered {code}: " in answer.error and "no such model" in answer.error and len(proxy.requests) == 1


# What a server does not take


def openai_says(name):
    return {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}}


def value_says(name):
    return {"error": {"message": f"Unsupported value: '{name}' does not support 0.3 with this model. Only the default (1) value is supported.", "param": None}}


def google_says(name):
    return [{"error": {"code": 400, "message": f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.', "status": "INVALID_ARGUMENT"}}]


def fastapi_says(name):
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": {"temperature": 0.3, "seed": 0, "max_tokens": 8}}]}


def vllm_says(name):
    return {"object": "error", "message": f"[{{'type': 'extra_forbidden', 'loc': ('body', '{name}'), 'msg': 'Extra inputs are not permitted'}}]", "param": None, "code": 400}


def plain_says(name):
    return f"{name} is not supported"


def refusing(*names, says=openai_says, code=400, reply=completion("fine")):
    """A server that refuses these parameters, one after the other, and answers without them."""
    def act(exchange):
        refused = [name for name in names if name in json.loads(exchange.body)]
        body = says(refused[0]) if refused else ""
        (status(code, body if isinstance(body, str) else json.dumps(body)) if refused else reply)(exchange)

    return act


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize("says", [openai_says, value_says, google_says, fastapi_says, vllm_says, plain_says])
@pytest.mark.parametrize("name", ["temperature", "seed", "max_tokens"])
def test_a_refused_parameter_is_left_out_and_said_once(proxy, name, says, code):
    proxy.always = refusing(name, says=says, code=code)
    chat = Chat("tiny", base_url=proxy.url)
    with pytest.warns(UserWarning, match=f"does not take '{name}' for the model 'tiny': it is asked without") as said:
        assert chat.answers([ask("a red boat")], progress=False)[0].text == "fine"
        assert chat.answers([ask("a blue boat")], progress=False)[0].text == "fine"
    assert len(said) == 1 and len(proxy.requests) == 3 and all(name not in sent for sent in proxy.requests[1:])
    assert set(proxy.requests[0]) - {"max_tokens"} <= set(proxy.requests[1]) | {name}  # the others are still sent


OTHERS = {  # a status and a wording of one server each, {} the parameter
    "azure": (400, {"error": {"code": "unsupported_parameter", "message": "Unsupported parameter: '{}' is not supported with this model.", "param": None, "innererror": {}}}),
    "azure, older": (400, {"error": {"message": "Unrecognized request argument supplied: {}", "type": "invalid_request_error", "param": None, "code": None}}),
    "anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "`{}` is deprecated for this model."}}),
    "openrouter": (400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error": {"message": "Unsupported value", "param": "{}"}}'}}}),
    "litellm": (400, {"error": {"message": "litellm.UnsupportedParamsError: bedrock does not support parameters: ['{}'], for model=m. To drop these, set "
                                           "`litellm.drop_params=True`", "type": "None", "param": "None", "code": "400"}}),
    "mistral": (422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "{}"], "msg": "Extra inputs are not permitted", "input": 0}]}}),
    "vllm": (400, {"object": "error", "message": "[{'type': 'value_error', 'loc': ('body',), 'msg': 'Value error, {} is not supported', 'input': {'model': 'm', "
                                                 "'temperature': 0.3, 'seed': 0, 'max_tokens': 8}}]", "type": "BadRequestError", "param": None, "code": 400}),
    "pydantic": (422, {"detail": [{"type": "value_error", "loc": ["body"], "msg": "Value error, {} is not supported", "input": {"temperature": 0, "seed": 0, "max_tokens": 8}}]}),
    "tgi": (422, {"error": "Input validation error: `{}` must be strictly positive", "error_type": "validation"}),
    "lm studio": (400, {"error": "'{}' is not allowed"}), "capital": (400, {"error": {"message": "{} is not supported"}}),
    "a list of what is taken": (400, {"error": {"message": "Unknown parameter: '{}'. Supported parameters are: temperature, seed, max_tokens."}}),
    "an uncaught error": (500, {"error": {"message": "create() got an unexpected keyword argument '{}'"}}), "not implemented": (501, "{} is not implemented"),
}


def filled(value, name):
    """`value` with `name` for each "{}"."""
    if isinstance(value, dict):
        return {key: filled(part, name) for key, part in value.items()}
    return [filled(part, name) for part in value] if isinstance(value, list) else value.replace("{}", name) if isinstance(value, str) else value


@pytest.mark.parametrize("server", OTHERS)
@pytest.mark.parametrize("name", ["temperature", "seed", "max_tokens"])
def test_every_servers_wording_is_understood(proxy, server, name):
    code, body = OTHERS[server]
    said = name.replace("_", " ").capitalize() if server == "capital" else name
    proxy.always = refusing(name, says=lambda _: filled(body, said), code=code)
    with pytest.warns(UserWarning, match=f"does not take '{name}' for"):
        assert one(proxy, retries=3).text == "fine"
    assert len(proxy.requests) == 2 and {"temperature", "seed", "max_tokens"} - {name} <= set(proxy.requests[1])


@pytest.mark.parametrize("says", [
    "max_tokens is too large: 4104. This model supports at most 32 completion tokens.", "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]",
    "`max_tokens` must be less than or equal to `1024`, the maximum value for `max_tokens`", "'max_tokens' or 'max_completion_tokens' is too large: 4104. "
    "This model's maximum context length is 2048 tokens and your request has 20 input tokens", "max_tokens: 4104 > 4096, which is the maximum allowed number of output tokens",
])
@pytest.mark.filterwarnings("error")
def test_a_limit_that_is_too_large_is_no_parameter_that_is_refused(proxy, says):
    def act(exchange):
        small = json.loads(exchange.body).get("max_tokens", 10**6) < 100
        (completion("", "length", reasoning_content="They show") if small else status(400, json.dumps({"error": {"message": says, "param": None}})))(exchange)

    proxy.always = act
    error = one(proxy).error
    assert error.startswith("the answer is nothing but thinking") and f"with 4096 tokens for thinking: {proxy.url} answered 400" in error and len(proxy.requests) == 2


def test_the_limit_is_renamed_before_it_is_left_out(proxy):
    proxy.always = refusing("max_tokens")
    with pytest.warns(UserWarning, match="asked without, and with 'max_completion_tokens' instead"):
        assert one(proxy).text == "fine"
    assert proxy.requests[1]["max_completion_tokens"] == 8
    proxy.always = refusing("max_tokens", "max_completion_tokens")
    with pytest.warns(UserWarning, match="'max_completion_tokens', 'max_tokens' for the model 'tiny': it is asked without$"):
        assert one(proxy, "a house").text == "fine"
    assert len(proxy.requests) == 5


@pytest.mark.parametrize("says", [
    {"error": {"message": "Unsupported value: 'messages[0].role' does not support 'system' with this model.", "param": "messages[0].role"}},
    {"object": "error", "message": "System role not supported", "code": 400}, {"error": {"message": "Developer instruction is not enabled for models/gemma-3-27b-it"}},
    {"error": "Conversation roles must alternate user/assistant/user/assistant/..."}, "Only user and assistant roles are supported!",
], ids=range(5))
def test_a_model_without_a_system_role_is_told_the_same_by_the_user(proxy, says):
    refuse = status(400, says if isinstance(says, str) else json.dumps(says))
    proxy.always = lambda exchange: (refuse if b'"system"' in exchange.body else completion("fine"))(exchange)
    chat = Chat("tiny", base_url=proxy.url)
    with pytest.warns(UserWarning, match="does not take 'system' .* and what the system says begins the user's first message$"):
        assert [answer.text for answer in chat.answers([ask("a")], progress=False)] == ["fine"]
    assert chat.answers([ask("b")], progress=False)[0].text == "fine" and len(proxy.requests) == 3
    assert proxy.requests[-1]["messages"] == [{"role": "user", "content": "Name what you see.\n\nb"}] and proxy.requests[-1]["seed"] == 0


def test_a_model_that_takes_nothing_is_asked_four_times_and_then_once(proxy):
    proxy.always = refusing("temperature", "seed", "max_tokens", "max_completion_tokens")
    chat = Chat("tiny", base_url=proxy.url)
    with pytest.warns(UserWarning, match="'max_completion_tokens', 'max_tokens', 'seed', 'temperature'"):
        assert chat.answers([ask("a")], progress=False)[0].text == "fine"
    assert len(proxy.requests) == 5 and set(proxy.requests[-1]) == {"model", "messages"}
    answers = chat.answers([ask(str(number)) for number in range(6)], progress=False)
    assert [answer.text for answer in answers] == ["fine"] * 6 and len(proxy.requests) == 11


@pytest.mark.parametrize("body", [
    {"error": {"message": "unknown role in messages; temperature, seed and max_tokens were fine", "param": "messages"}},
    {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens. Reduce max_tokens.", "param": None}},
    {"error": {"message": "max_tokens is too large: 64. This model supports at most 32 completion tokens.", "param": "max_tokens"}},
    {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": {"temperature": 0.3, "seed": 0}}]},
    "[" * 900 + "]" * 900, {"error": {"message": "birdseed and seedlings, max_tokens_total"}}, "no such model", {"error": "bad"}, {"error": None}, [7], None,
], ids=str)
@pytest.mark.filterwarnings("error")
def test_what_is_no_refusal_of_a_parameter_is_not_asked_again(proxy, body):
    proxy.always = status(400, body if isinstance(body, str) else json.dumps(body))
    assert one(proxy, retries=3).error.startswith(f"{proxy.url} answered 400: ") and len(proxy.requests) == 1


@pytest.mark.filterwarnings("error")
def test_a_refusal_that_is_none_is_not_remembered(proxy):
    proxy.always = status(400, json.dumps({"error": {"message": "seed not understood"}}))
    chat = Chat("tiny", base_url=proxy.url)
    assert "seed not understood" in chat.answers([ask("a")], progress=False)[0].error and len(proxy.requests) == 2
    proxy.always = completion("fine")
    assert chat.answers([ask("a")], progress=False)[0].text == "fine" and "seed" in proxy.requests[-1]


# An answer in a form


FORMS = [("label", '{"label": "red boats"}', "red boats"), ("label", '```json\n{"label": "red boats"}\n```', "red boats"), ("label", "red boats", "red boats"),
         ("label", '<think>{"label": "x"}</think>{"label": "red boats"}', "red boats"), ("label", '{"answer": {"label": "red boats"}}', "red boats"),
         ("phrases", '{"phrases": ["a mast", "a \\"red\\" hull"]}', 'a mast\na "red" hull'), ("phrases", '{"phrases": ["a mast", "a sail", "a hu', "a mast\na sail"),
         ("phrases", "a mast\na sail", "a mast\na sail"), ("label", "{red} boats", "{red} boats"), ("", '{"label": "red boats"}', '{"label": "red boats"}'),
         ("label", '{"reasoning": "All are red.", "label": "red boats"}', "red boats"), ("label", '{"label": "red boats", "explanation": "they are red", "sure": 0.9}', "red boats"),
         ("label", 'Here is the JSON: {"label": "red boats"}', "red boats"), ("label", 'Sure!\n```json\n{"label": "red boats"}\n```\nThey are red.', "red boats"),
         ("label", '{"label": "red boats", "why": "they are al', "red boats"), ("label", 'First {"label": "red boats"}, again {"label" : "red boats"}', "red boats"),
         ("label", '{"reasoning": "a \\"label\\": short", "label": "red boats"}', "red boats"), ("phrases", 'I see:\n{"note": ["x"], "phrases": ["a mast", "a sail"]}', "a mast\na sail"),
         ("phrases", '{"phrases": "a mast"}', "a mast"), ("phrases", '{"phrases": ["a mast",', "a mast")]


@pytest.mark.parametrize("form, content, said", FORMS)
@pytest.mark.filterwarnings("error")
def test_an_answer_in_a_form_is_what_stands_in_it(proxy, form, content, said):
    proxy.always = completion(content)
    chat = Chat("tiny", base_url=proxy.url)
    assert [chat.answers([ask("a", form=form)], progress=False)[0].text for _ in range(2)] == [said, said] and len(proxy.requests) == 1
    asked = proxy.requests[0].get("response_format", {}).get("json_schema", {})
    assert (asked.get("name", ""), asked.get("strict", False)) == (form, bool(form))
    assert not form or asked["schema"]["required"] == [form] and proxy.requests[0]["max_tokens"] > 8


@pytest.mark.parametrize("says", [
    openai_says, google_says, fastapi_says, plain_says, lambda _: {"error": {"message": "This response_format type is unavailable now"}},
    lambda _: "'response_format.type' must be 'json_object' or 'text'", lambda _: {"error": {"message": "json_schema is enabled only for api versions 2024-08-01-preview and later"}},
    lambda _: {"error": {"message": "Structured output is not supported by this model"}},
], ids=range(8))
def test_a_server_without_forms_is_asked_without_and_that_is_remembered(proxy, says):
    proxy.always = refusing("response_format", says=says, reply=completion("red boats"))
    chat = Chat("tiny", base_url=proxy.url)
    with pytest.warns(UserWarning, match="does not take 'response_format' for the model 'tiny': it is asked without$"):
        assert chat.answers([ask("a", form="label")], progress=False)[0].text == "red boats"
    assert chat.answers([ask("b", form="label")], progress=False)[0].text == "red boats" and len(proxy.requests) == 3
    assert proxy.requests[-1]["max_tokens"] == 8 and "response_format" not in proxy.requests[-1]


@pytest.mark.parametrize("content", ["", "   \n\n  ", '{"label": "a very lo', "{}", '{"label": ""}', '{"reasoning": "All are red."}', '{"label": 7}'])
def test_a_form_that_silences_the_model_is_left_out(proxy, content):
    proxy.always = lambda exchange: completion(content if b"response_format" in exchange.body else "red boats")(exchange)
    chat = Chat("tiny", base_url=proxy.url)
    with pytest.warns(UserWarning, match="does not take 'response_format'"):
        assert chat.answers([ask("a", form="label")], progress=False)[0].text == "red boats"
    assert chat.answers([ask("b", form="label")], progress=False)[0].text == "red boats" and len(proxy.requests) == 3
    proxy.always = completion("")
    assert Chat("other", base_url=proxy.url).answers([ask("c", form="label")], progress=False)[0].error.startswith("the answer is empty")


MIXED = [("label", '{"reasoning": "All are red."}'), ("label", '{"answer": "red boats"}'), ("label", '{"label": 7}'), ("label", '{"label": null}'),
         ("label", '{"label": ["red boats", "a sail"]}'), ("label", '{"label": {"text": "red boats"}}'), ("label", '{"label": "red boats"} or {"label": "sails"}'),
         ("label", '{"type": "object", "properties": {"label": {"type": "string", "description": "red boats"}}}'), ("label", "{'label': 'red boats'}"),
         ("label", "{label: red boats}"), ("label", r'"{\"label\": \"red boats\"}"'), ("label", 'Sure: {"reasoning": "red", "label": "red bo'), ("label", '["red boats"]'),
         ("phrases", '{"phrases": [{"feature": "a mast", "why": "to sail"}]}'), ("phrases", '{"phrases": ["a mast", {"a": "sail"}, "a hu'), ("phrases", '{"features": ["a mast"]}'),
         ("phrases", '{"phrases": ["a mast", 7]}'), ("phrases", '{"phrases":' * 50_000)]


@pytest.mark.parametrize("form, content", MIXED, ids=range(len(MIXED)))
@pytest.mark.filterwarnings("error")
def test_json_without_what_the_form_asks_for_is_no_answer(proxy, form, content):
    proxy.always = completion(content)
    answer = Chat("tiny", base_url=proxy.url).answers([ask("a", form=form)], progress=False)[0]
    assert answer.text == "" and answer.error.startswith(f"the answer is JSON without one text named '{form}': ") and len(answer.error) < 400
    assert len(proxy.requests) == 2 and "response_format" not in proxy.requests[1]  # asked once more, free, and read for the form all the same
    assert not Chat("tiny", base_url=proxy.url).answers([ask("a", form=form)], progress=False)[0].cached


def test_the_choice_of_the_lowest_index_is_the_answer(proxy):
    choices = [{"index": at, "message": {"content": text}, "finish_reason": "stop"} for at, text in ((1, "second"), (0, "first"))]
    proxy.always = text(json.dumps({"choices": choices}))
    assert one(proxy).text == "first"


def test_the_steps_of_the_methods_ask_in_a_form():
    from neuronbench.describe.describe_and_dissect.candidates import Asking
    from neuronbench.describe.patch_vocabulary import PatchVocabulary

    asking = Asking()
    requests = [*asking.simplify(["a boat"]), *asking.summarise(["a boat"]), asking.relabel("boat, ship")]
    assert {request.form for request in requests} == {"label"} and PatchVocabulary(None, chat=object())._request("boat").form == "phrases"
    with pytest.raises(KeyError, match="did you mean 'label'"):
        ask("a", form="labl")


# No credit


def gemini_says(*quotas, more=""):
    """Gemini's error for the quotas that are used up; where it names any, it says when to ask again, even for those of a day."""
    said = {"code": 429, "message": f"You exceeded your current quota, please check your plan and billing details.{more}", "status": "RESOURCE_EXHAUSTED"}
    return json.dumps([{"error": {**said, "details": [{"quotaId": name, "retryDelay": "7s"} for name in quotas]}}])


@pytest.mark.parametrize("fault", [
    status(429, '{"error": {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": "insufficient_quota"}}'),
    status(429, '{"error": {"message": "You exceeded your current quota.", "type": "insufficient_quota"}}', Retry_After="1"),
    status(402, '{"error": {"message": "Insufficient Balance", "type": "unknown_error"}}'), status(402, "<html>pay</html>"),
    status(400, '{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}}'),
    status(400, '{"error": {"code": "billing_hard_limit_reached"}}'), status(403, '{"error": {"type": "insufficient_user_quota"}}'),
    status(429, gemini_says()), status(429, gemini_says("GenerateRequestsPerMinutePerModel", "GenerateRequestsPerDayPerModel")),
    status(429, gemini_says("InputTokensPerModelPerMinute", more=", limit: 0")),
], ids=range(10))
def test_without_credit_everything_stops_at_once_and_what_was_answered_is_kept(proxy, fault):
    proxy.faults, proxy.always = [completion("fine")] * 3, fault
    requests = [ask(str(number)) for number in range(20)]
    with pytest.raises(ConnectionError, match=f"^no credit or quota is left at {proxy.url}; what was answered is kept") as caught:
        Chat("tiny", base_url=proxy.url, concurrency=2).answers(requests, progress=False)
    assert 4 <= len(proxy.requests) <= 5 and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    proxy.always = completion("later")
    answers = Chat("tiny", base_url=proxy.url).answers(requests, progress=False)
    assert sorted(answer.text for answer in answers) == ["fine"] * 3 + ["later"] * 17


@pytest.mark.parametrize("says", [gemini_says("GenerateRequestsPerMinutePerModel"), '{"error": {"message": "Resource has been exhausted (e.g. check quota).", "status": "RESOURCE_EXHAUSTED"}}'])
def test_a_quota_of_the_minute_is_waited_for(proxy, says):
    proxy.faults = [status(429, says)]
    assert one(proxy).text == "fine" and len(proxy.requests) == 2


def test_what_is_in_flight_when_the_credit_ends_is_kept(proxy):
    refused = threading.Event()

    def last(exchange):
        assert refused.wait(30)
        completion("paid for")(exchange)

    def no_credit(exchange):
        status(429, '{"error": {"code": "insufficient_quota"}}')(exchange)
        refused.set()

    proxy.always = lambda exchange: (last if "slow" in exchange.body.decode() else no_credit)(exchange)
    with pytest.raises(ConnectionError, match="no credit"):
        Chat("tiny", base_url=proxy.url, concurrency=2).answers([ask("slow"), ask("b"), ask("c")], progress=False)
    assert len(proxy.requests) <= 3  # the third if the paid one came a moment before the other's end
    assert Chat("tiny", base_url=proxy.url).answers([ask("slow")], progress=False)[0].text == "paid for"


# What the server says


@pytest.mark.parametrize("fault, error", [
    (completion(None, refusal="I cannot help with that."), "the model refused: 'I cannot help with that.'"),
    (completion("", "content_filter"), "the model refused: 'content filter'"),
    (completion("Some wor", "content_filter"), "the model refused: 'Some wor'"),
], ids=["refusal", "filtered", "filtered half way"])
def test_a_refusal_is_recorded_and_kept(proxy, fault, error):
    proxy.always = fault
    assert one(proxy, retries=3).error == error
    assert one(proxy).cached and len(proxy.requests) == 1
    other = Chat("tiny", base_url=proxy.url).answers([ask("a red boat", seed=1)], progress=False)[0]
    assert not other.cached and len(proxy.requests) == 2


@pytest.mark.parametrize("content, message, error", [
    ("", {}, "the answer is empty (finish reason 'stop', max_tokens 8)"),
    ("  \n ", {}, "the answer is empty (finish reason 'stop', max_tokens 8)"), (None, {}, "the answer is empty (finish reason 'stop', max_tokens 8)"),
    ([], {}, "the answer is empty (finish reason 'stop', max_tokens 8)"),
    ("<think>They show boats and", {}, "the answer is nothing but thinking (finish reason 'stop', max_tokens 8)"),
    ("<think>They show boats.</think>", {}, "the answer is nothing but thinking (finish reason 'stop', max_tokens 8)"),
    (None, {"reasoning_content": "They show boats."}, "the answer is nothing but thinking (finish reason 'stop', max_tokens 8)"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "They"}]}], {}, "the answer is empty (finish reason 'stop', max_tokens 8)"),
], ids=str)
def test_an_empty_answer_is_never_kept(proxy, content, message, error):
    proxy.always = completion(content, **message)
    assert one(proxy, retries=3).error == error and len(proxy.requests) == 1
    proxy.always = completion("fine")
    assert one(proxy).text == "fine"


@pytest.mark.parametrize("content, message", [
    ("<think>\n\n</think>\n\nsailboats", {}), ("<think>They show <b>boats</b>.</think>\n\nsailboats", {}), ("They show boats.\n</think>\nsailboats", {}),
    ("<THINKING mode='x'>a</thinking > sailboats", {}), ("<reasoning>a\n<think>b</think>c</reasoning>sailboats", {}), ("sailboats<thought>am I sure", {}),
    ("[THINK]hm[/THINK]sailboats", {}), ("<seed:think>hm</seed:think>sailboats", {}), ("a</think>b</think>sailboats", {}), ("<think>a</think>sail<think>b</think>boats", {}),
    ("<think>" + "long " * 5000 + "</think>sailboats", {}), ("sailboats", {"reasoning_content": "They show boats."}), ("sailboats", {"reasoning": "They show boats."}),
    ([{"type": "text", "text": "sailboats"}], {}), ([{"type": "text", "text": "sail"}, {"type": "output_text", "text": "boats"}], {}), (["sailboats"], {}),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "sailboats"}], {}), ([{"text": "<think>x</think>sailboats"}], {}),
    ([{"type": "reasoning", "text": "They show boats."}, {"type": "text", "text": "sailboats"}], {}),
    ("<|channel|>analysis<|message|>They show boats.<|end|><|start|>assistant<|channel|>final<|message|>sailboats<|return|>", {}), ("◁think▷hm◁/think▷sailboats", {}),
    ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>sailboats<|END_RESPONSE|>", {}), ("analysisThey show boats.assistantfinalsailboats", {}),
    ("sailboats<|im_end|>\n<|im_start|>user\nAnd this?", {}), ("<s> sailboats</s>", {}), ("sailboats<end_of_turn>", {}),
], ids=lambda given: str(given)[:40])
def test_thinking_is_no_part_of_an_answer_and_parts_are_read(proxy, content, message):
    proxy.always = completion(content, **message)
    assert [(one(proxy).text, one(proxy).text), len(proxy.requests)] == [("sailboats", "sailboats"), 1]


def thinker(thoughts=300, opened=True, hidden=False, answer="sailboats"):
    """A model that thinks for so many words before it answers, in one word, and is cut off at the limit; a token is a word here."""
    def act(exchange):
        asked = json.loads(exchange.body)
        limit = asked.get("max_tokens", asked.get("max_completion_tokens", 10**9))
        thinking = (["<think>"] if opened else []) + ["hm"] * thoughts + ["</think>"]
        said = [*thinking, *answer.split()][:limit]
        shown = said[len(thinking) :] if hidden else said
        reason = "length" if limit < len(thinking) + len(answer.split()) else "stop"
        completion(" ".join(shown), reason, usage={"prompt_tokens": 5, "completion_tokens": len(said)})(exchange)

    return act


@pytest.mark.parametrize("hidden", [False, True])
def test_a_model_that_thinks_gets_room_for_it_once_it_is_known(proxy, hidden):
    proxy.always = thinker(hidden=hidden)
    chat = Chat("tiny", base_url=proxy.url, concurrency=1, thinking=1000)
    answers = chat.answers([ask(str(number)) for number in range(4)], progress=False)
    assert [answer.text for answer in answers] == ["sailboats"] * 4
    assert [sent["max_tokens"] for sent in proxy.requests] == [8, 1008, 1008, 1008, 1008]
    assert chat.usage.completion_tokens == 8 + 4 * 303 and chat.usage.prompt_tokens == 25
    assert chat.estimate([ask("new")]).completion_tokens == 1008


def test_thinking_that_the_prompt_opened_gets_room_once_its_end_was_seen(proxy):
    proxy.faults = [thinker(3, opened=False)]
    proxy.always = thinker(opened=False)
    answers = Chat("tiny", base_url=proxy.url, concurrency=1).answers([ask(str(number)) for number in range(4)], progress=False)
    assert [answer.text for answer in answers] == ["sailboats"] * 4 and len(proxy.requests) == 4


def test_many_at_once_are_all_answered_after_thinking(proxy):
    proxy.always = thinker()
    answers = Chat("tiny", base_url=proxy.url).answers([ask(str(number)) for number in range(20)], progress=False)
    assert [answer.text for answer in answers] == ["sailboats"] * 20 and len(proxy.requests) <= 28


@pytest.mark.parametrize("kind", [{}, {"opened": False}, {"hidden": True}], ids=str)
def test_thinking_without_an_end_is_never_a_label(proxy, kind):
    proxy.always = thinker(2, **kind)
    chat = Chat("tiny", base_url=proxy.url, concurrency=1, thinking=1000)
    assert chat.answers([ask("short")], progress=False)[0].text == "sailboats"
    proxy.requests.clear()
    proxy.always = thinker(10**4, **kind)
    answer = chat.answers([ask("endless")], progress=False)[0]
    assert answer.text == "" and answer.error and len(proxy.requests) <= 2
    proxy.always = thinker(**kind)
    assert chat.answers([ask("endless")], progress=False)[0].text == "sailboats"


@pytest.mark.parametrize("kind", [{}, {"hidden": True}], ids=str)
def test_what_needs_more_room_than_there_is_says_so(proxy, kind):
    proxy.always = thinker(10**4, **kind)
    answer = one(proxy, thinking=100)
    assert answer.text == "" and "finish reason 'length', max_tokens 8); with 100 tokens for thinking: the answer is" in answer.error
    assert len(proxy.requests) == 2 and one(proxy, thinking=0).error and len(proxy.requests) == 3


def test_a_long_answer_without_thinking_stays_as_it_is(proxy):
    proxy.always = completion("a long ans", "length")
    assert one(proxy).text == "a long ans" and len(proxy.requests) == 1


def test_a_server_that_gives_no_more_room(proxy):
    proxy.faults = [completion("", "length"), status(400, '{"error": {"message": "max_tokens is too large: 4104", "param": "max_tokens"}}')]
    error = one(proxy).error
    assert error.startswith("the answer is empty (finish reason 'length', max_tokens 8); with 4096 tokens for thinking: ") and "too large: 4104" in error


@pytest.mark.parametrize("body", ["{}", "[]", "null", '"text"', '{"choices": []}', '{"choices": [{}]}',
                                  '{"choices": [{"message": {"content": 7}}]}', '{"choices": [{"message": {"content": [7]}}]}', '{"choices": [{"message": {"content": [{"text": 7}]}}]}',
                                  '{"choices": [{"message": {"content": "x"}}], "usage": 7}',
                                  '{"error": {"message": "no credit"}}'])
def test_json_of_another_shape_is_a_fault_of_the_server(proxy, body):
    proxy.always = text(body)
    answer = one(proxy, retries=3)
    assert answer.text == "" and answer.error == f"{proxy.url} answered with JSON that is no chat completion: {body!r}"
    assert len(proxy.requests) == 1
    proxy.always = completion("fine")
    assert one(proxy).text == "fine"


def test_an_answer_of_ten_thousand_words_is_cut(proxy):
    proxy.always = completion("word " * 10_000)
    answer = one(proxy)
    assert answer.error == "" and len(answer.text) <= 16 * 8 and answer.text == ("word " * 26)[:-2].strip()
    assert one(proxy).text == answer.text


def test_html_and_markdown_stay_text(proxy):
    said = "<script>alert(1)</script> **boat** &amp; [x](javascript:y)"
    proxy.always = completion(said)
    assert one(proxy).text == said and one(proxy).text == said


HOSTILE = ["red \ud83d boat", "red \udc00 boat", "\x1b]0;title\x07red \x1b[2K boat\r\n", "red \u202e\u2066 boat\u200f", "\0red  boat\ufeff"]


@pytest.mark.parametrize("said", HOSTILE, ids=ascii)
def test_an_answer_breaks_neither_the_next_request_nor_a_table(proxy, said):
    proxy.always = completion(said)
    for cached in (False, True):
        answer = one(proxy)
        assert (answer.text, answer.cached) == ("red  boat", cached)
        assert one(proxy, answer.text).error == "" and content_key(answer.text)
        assert describe_frame("layer", [0], [answer.text], [1.0], "m").to_csv().encode()


def test_what_an_older_version_kept_is_cleaned(proxy):
    chat = Chat("tiny", base_url=proxy.url)
    chat._store.put({ask("a red boat").key: json.dumps({"text": "red \ud83d\x1b[2J boat", "error": "", "prompt_tokens": 1, "completion_tokens": 1}).encode()})
    assert one(proxy).text == "red  boat" and not proxy.requests


@pytest.mark.parametrize("said", ["\ud83d", "\u202e\x1b[0m", "\0 \ufeff"], ids=ascii)
def test_an_answer_of_nothing_but_such_characters_is_empty(proxy, said):
    proxy.always = completion(said)
    answer = one(proxy)
    assert answer.text == "" and answer.error.startswith("the answer is empty")


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": "many", "completion_tokens": -3}, {}])
def test_tokens_that_the_server_does_not_count_are_estimated(proxy, usage):
    proxy.always = completion("a label", usage=usage)
    answer = one(proxy)
    assert answer.prompt_tokens == (len("Name what you see.") + len("a red boat")) / 4 and answer.completion_tokens == 2


def test_an_estimate_learns_from_what_was_counted(proxy):
    proxy.always = completion("x", usage={"prompt_tokens": 560, "completion_tokens": 1})
    chat = Chat("tiny", base_url=proxy.url, prices=(10, 20))
    before = chat.estimate([ask("a red boat"), ask("a red boat")])
    assert (before.requests, before.cached, before.prompt_tokens, before.completion_tokens) == (2, 1, 7, 8)
    assert before.cost == pytest.approx((7 * 10 + 8 * 20) / 1e6) and not proxy.requests
    chat.answers([ask("a red boat")], progress=False)
    assert chat.estimate([ask("a red bird")]).prompt_tokens > 400
    assert chat.estimate([ask("a red boat")]).prompt_tokens == 0
    assert Chat("tiny", base_url=proxy.url).estimate([ask("a red bird")]).cost is None


def test_a_picture_counts_as_a_tile(proxy):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    request = Request(({"role": "user", "content": [{"type": "text", "text": "What is it"}, picture]},))
    assert Chat("tiny", base_url=proxy.url).estimate([request]).prompt_tokens == 258


# Many at once


def test_concurrency_is_bounded_and_used(proxy):
    def slow(exchange):
        time.sleep(0.1)
        completion("fine")(exchange)

    proxy.always = slow
    answers = Chat("tiny", base_url=proxy.url, concurrency=3).answers([ask(str(number)) for number in range(12)], progress=False)
    assert len(answers) == 12 and proxy.most_at_once == 3


def test_answers_are_in_order_and_failures_do_not_stop_the_rest(proxy):
    def by_content(exchange):
        content = exchange.body.decode()
        (status(400) if "bad" in content else completion("odd" if "1" in content else "even"))(exchange)

    proxy.always = by_content
    answers = Chat("tiny", base_url=proxy.url).answers([ask(name) for name in ("0", "1", "bad", "1", "0")], progress=False)
    assert [answer.text for answer in answers] == ["even", "odd", "", "odd", "even"] and answers[2].error
    assert len(proxy.requests) == 3


def test_requests_differ_by_all_that_decides_the_answer(proxy):
    same = [ask("a"), ask("a", texts=("caption",))]
    others = [ask("b"), ask("a", temperature=0.4), ask("a", max_tokens=9), ask("a", seed=1)]
    Chat("tiny", base_url=proxy.url).answers([*same, *others], progress=False)
    assert len(proxy.requests) == 5
    Chat("other", base_url=proxy.url).answers(same, progress=False)
    with FaultProxy(always=completion("elsewhere")) as elsewhere:
        assert Chat("tiny", base_url=elsewhere.url).answers(same, progress=False)[0].text == "elsewhere"
    assert len(proxy.requests) == 6


def test_tokens_and_cost_are_in_the_bar(proxy, capsys):
    proxy.always = completion("x", usage={"prompt_tokens": 1200, "completion_tokens": 34})
    Chat("tiny", base_url=proxy.url, prices=(100, 100)).answers([ask("a")])
    bar = capsys.readouterr().err
    assert "tiny answers" in bar and "1,234 tokens, $0.1234" in bar


def test_inside_a_running_event_loop_and_in_a_thread(proxy):
    import asyncio

    async def notebook():
        return one(proxy).text

    assert asyncio.run(notebook()) == "fine"
    said = []
    thread = threading.Thread(target=lambda: said.append(one(proxy, "another").text))
    thread.start()
    thread.join()
    assert said == ["fine"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_cancels_what_is_in_flight_and_keeps_what_is_done(proxy, exception):
    first, gone = threading.Event(), threading.Event()

    def until_the_client_goes(exchange):
        first.set()
        if not exchange.handler.connection.recv(1):
            gone.set()

    proxy.faults = [completion("done")] * 2
    proxy.always = until_the_client_goes
    caught = []

    def run():
        try:
            Chat("tiny", base_url=proxy.url, concurrency=2).answers([ask(str(number)) for number in range(9)], progress=False)
        except exception as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert first.wait(30)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(exception))
    thread.join(30)
    assert not thread.is_alive() and caught and gone.wait(30)
    assert len(proxy.requests) <= 4
    proxy.always = completion("later")
    answers = Chat("tiny", base_url=proxy.url).answers([ask(str(number)) for number in range(9)], progress=False)
    assert sorted(answer.text for answer in answers) == ["done"] * 2 + ["later"] * 7


def test_ctrl_c_in_a_process_of_its_own(proxy, tmp_path):
    proxy.always = hang
    code = ("import signal, sys; from neuronbench.foundation.chat import Chat, Request, _address, _on_this_machine\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
            "try: Chat('tiny', base_url=sys.argv[1]).answers([Request(({'role': 'user', 'content': 'a'},))], progress=False)\n"
            "except KeyboardInterrupt: print('stopped')")
    process = subprocess.Popen([sys.executable, "-c", code, proxy.url], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not proxy.requests and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(2)
    assert process.communicate(timeout=30)[0] == "stopped\n" and process.returncode == 0


# Nothing there, no key, no leak


def _free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_nothing_listening_is_one_sentence():
    address = _free_address()
    with pytest.raises(ConnectionError, match="nothing can be reached at .* is the server running") as caught:
        Chat("tiny", base_url=address, retries=1).answers([ask(str(number)) for number in range(20)], progress=False)
    assert address in str(caught.value) and caught.value.__cause__ is None and caught.value.__context__ is None


def test_no_key_names_the_variable_and_the_ways_without():
    with pytest.raises(ValueError, match="OPENAI_API_KEY.*LocalChat and Consensus need no key"):
        Chat("gpt-6-luna").answers([ask("a")], progress=False)


def test_a_server_of_ones_own_is_sent_a_placeholder(proxy):
    assert one(proxy).text == "fine" and proxy.headers[0]["Authorization"] == "Bearer none-needed"


def test_the_address_may_come_from_the_environment(proxy, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", proxy.url)
    assert Chat("tiny").answers([ask("a")], progress=False)[0].text == "fine"


def test_openai_itself_gets_the_key_and_its_newer_name_for_the_limit(monkeypatch):
    import httpx2

    def answer(request):
        sent.append(request)
        return httpx2.Response(200, json={"choices": [{"message": {"content": "fine"}}]})

    sent = []
    openai_itself = httpx2.MockTransport(answer)
    monkeypatch.setattr("neuronbench.foundation.chat._http_client", lambda *_: httpx2.AsyncClient(transport=openai_itself))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Chat("gpt-6-luna").answers([ask("a")], progress=False)[0].text == "fine"
    assert str(sent[0].url) == "https://api.openai.com/v1/chat/completions" and sent[0].headers["Authorization"] == f"Bearer {KEY}"
    body = json.loads(sent[0].content)
    assert body["max_completion_tokens"] == 8 and "max_tokens" not in body


# Addresses


PROXIES = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]


@pytest.mark.parametrize("through", ["http://127.0.0.1:1", "socks5://127.0.0.1:1", "nonsense://x"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "127.0.0.1:{}/v1"])
def test_a_server_on_this_machine_is_asked_directly(proxy, monkeypatch, through, host):
    for name in PROXIES:
        monkeypatch.setenv(name, through)
    monkeypatch.setenv("NO_PROXY", "example.org")
    port = proxy.url.rsplit(":")[-1].split("/")[0]
    address = f"http://{host.format(port)}" if "{}" in host else f"http://{host}:{port}/v1"
    assert Chat("tiny", base_url=address, retries=0).answers([ask("a")], progress=False)[0].text == "fine"


def test_a_server_elsewhere_is_asked_through_the_proxy(proxy, monkeypatch):
    for name in PROXIES:
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert Chat("tiny", base_url="http://example.invalid/v1", retries=0).answers([ask("a")], progress=False)[0].text == "fine"
    for name in PROXIES:
        monkeypatch.setenv(name, "socks9://me:secret@127.0.0.1:1")
    with pytest.raises(ConnectionError, match="^no connection can be made through the proxy that the environment names") as caught:
        Chat("tiny", base_url="http://example.invalid/v1", retries=0).answers([ask("b")], progress=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host, here", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", True), ("localhost", True), ("box.localhost.", True), ("10.0.0.1", False), ("localhost.org", False),
])
def test_which_hosts_are_this_machine(host, here):
    assert _on_this_machine(host) == here


@pytest.mark.parametrize("given", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions/"])
@pytest.mark.parametrize("where", ["/v1/chat/completions", "/chat/completions"])
@pytest.mark.filterwarnings("error")
def test_an_address_with_and_without_v1_works(proxy, given, where):
    proxy.always = lambda exchange: (completion("fine") if exchange.handler.path == where else status(404, '{"detail": "Not Found"}'))(exchange)
    chat = Chat("tiny", base_url=proxy.url.removesuffix("/v1") + given)
    assert chat.answers([ask("a")], progress=False)[0].text == "fine" and len(proxy.requests) == (1 if where.startswith("/v1") else 2)
    assert chat.answers([ask("b")], progress=False)[0].text == "fine" and len(proxy.requests) == (2 if where.startswith("/v1") else 3)  # remembered


def test_an_address_below_a_path_works(proxy):
    proxy.always = lambda exchange: (completion("fine") if exchange.handler.path == "/api/v1/chat/completions" else status(404, "<html>"))(exchange)
    for given in ["/api", "/api/v1/"]:
        assert Chat("tiny", base_url=proxy.url.removesuffix("/v1") + given).answers([ask(given)], progress=False)[0].text == "fine"
    answer = Chat("tiny", base_url=proxy.url.removesuffix("/v1") + "/other", retries=0).answers([ask("c")], progress=False)[0]
    assert "/other answered 404" in answer.error


@pytest.mark.parametrize("path, version", [("/openai/deployments/small?api-version=2024-10-21", ""), ("/openai/deployments/small/", "2024-10-21"),
                                           ("/openai/deployments/small/chat/completions?api-version=2024-10-21", "2023-05-15")])
@pytest.mark.parametrize("variable", ["AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"])
def test_azure_gets_its_version_and_its_header(proxy, monkeypatch, path, version, variable):
    paths = []
    proxy.always = lambda exchange: (paths.append(exchange.handler.path), completion("fine")(exchange))
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("OPENAI_API_VERSION", version)
    chat = Chat("tiny", base_url=proxy.url.removesuffix("/v1") + path)
    assert chat.answers([ask("a")], progress=False)[0].text == "fine"
    assert paths == ["/openai/deployments/small/chat/completions?api-version=2024-10-21"]
    assert proxy.headers[0]["api-key"] == KEY and proxy.headers[0]["Authorization"] is None
    _nowhere(repr(chat), repr(vars(chat)))


@pytest.mark.parametrize("url, version, place", [
    ("https://lab.openai.azure.com", "", "https://lab.openai.azure.com/openai/v1"), ("https://lab.openai.azure.com/openai/v1/", "", "https://lab.openai.azure.com/openai/v1"),
    ("https://lab.openai.azure.com/", "2024-10-21", "https://lab.openai.azure.com/openai/deployments/small"),
    ("https://lab.openai.azure.com/openai?api-version=preview", "", "https://lab.openai.azure.com/openai/deployments/small"),
    ("https://lab.services.ai.azure.com/models?api-version=2024-05-01-preview", "", "https://lab.services.ai.azure.com/models"),
])
def test_azures_addresses(monkeypatch, url, version, place):
    monkeypatch.setenv("OPENAI_API_VERSION", version)
    address = _address(url, "small")
    assert address.places[0] == place and address.azure and not address.direct and address.name == place
    assert address.query == {"api-version": url.partition("=")[2] or version} or "deployments" not in place
    with pytest.raises(ValueError, match="set the environment variable AZURE_OPENAI_API_KEY"):
        Chat("small", base_url=url).answers([ask("a")], progress=False)


def test_an_azure_deployment_without_a_version_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"'small' has no version: add \?api-version=.*OPENAI_API_VERSION"):
        Chat("tiny", base_url="https://lab.openai.azure.com/openai/deployments/small")


def test_a_key_with_a_line_break_is_refused_without_being_shown(proxy, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert one(proxy).text == "fine" and proxy.headers[0]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(ValueError, match="OPENAI_API_KEY has characters that no key has") as caught:
        one(proxy, "b")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("settings", [{"base_url": "localhost:8000"}, {"base_url": "http://localhost:80a"}, {"base_url": "http://[::1"}, {"base_url": "http://"}, {"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"thinking": -1}], ids=str)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError):
        Chat("tiny", **settings)


def echo(reply):
    """`reply` makes a fault of the Authorization header, as a careless server would."""
    return lambda exchange: reply(exchange.handler.headers["Authorization"])(exchange)


ECHOES = {
    "401": echo(lambda header: status(401, f"denied: {header} {header} {header}")),
    "400": echo(lambda header: status(400, json.dumps({"error": {"message": f"bad header {header}"}}))),
    "500": echo(lambda header: status(500, "x" * 180 + header)),
    "answer": echo(lambda header: completion(f"your key is {header}")),
    "refusal": echo(lambda header: completion("", refusal=header)),
    "escaped": echo(lambda header: text(json.dumps({"choices": [{"message": {"content": header}}]}).replace("sk-", r"\u0073k-"))),
    "other JSON": echo(lambda header: text(json.dumps({"odd": header}))),
    "reset": reset, "hang": hang,
}


@pytest.mark.parametrize("fault", ECHOES.values(), ids=ECHOES)
def test_the_key_is_nowhere(proxy, fault, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    proxy.always = fault
    chat = Chat("tiny", base_url=proxy.url, retries=1, timeout=0.5 if fault is hang else 30)
    answer = chat.answers([ask("a red boat")])[0]
    assert proxy.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert answer.text or answer.error
    _nowhere(repr(chat), repr(vars(chat)), repr(answer), repr(chat.usage), caplog.text, *capsys.readouterr())
    for path in cache_folder().rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_the_key_is_in_no_traceback(monkeypatch, proxy):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConnectionError) as nothing:
        Chat("tiny", base_url=_free_address(), retries=0).answers([ask("a")], progress=False)

    def stop(**_):
        raise RuntimeError("stopped")

    chat = Chat("tiny", base_url=proxy.url)
    monkeypatch.setattr(chat, "_count", stop)  # an exception in the midst of an answer
    with pytest.raises(RuntimeError, match="stopped") as midway:
        chat.answers([ask("a")], progress=False)
    for caught in (nothing, midway):
        _nowhere("".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()))


def _nowhere(*texts):
    for found in texts:
        assert KEY not in found and KEY[:10] not in found
