"""Agent programs of tests: each asks by HTTP, as a client of any server would."""

import asyncio
import json
import threading
import urllib.error
import urllib.request


def ask(base_url, messages, path="/chat/completions", **more):
    body = json.dumps({"model": "any", "messages": messages, **more}).encode()
    request = urllib.request.Request(base_url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def said(base_url, messages, **more):
    return json.loads(ask(base_url, messages, **more))["choices"][0]["message"]


def three_questions(base_url, row, seed):
    """Asks thrice, each time with all that was said."""
    messages = [{"role": "system", "content": f"Seed {seed}."}, *row["messages"]]
    for number in range(3):
        messages.append(said(base_url, messages))
        messages.append({"role": "user", "content": [{"type": "text", "text": f"and then, {number}?"}]})
    return 0.5


async def later(base_url, row):
    """An async program, and one that does not say what it is worth."""
    said(base_url, row["messages"])


TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
}


def with_tools(base_url, row):
    messages = list(row["messages"])
    while True:
        message = said(base_url, messages, tools=[TOOL])
        messages.append(
            {k: v for k, v in message.items() if v is not None}
        )  # as clients that leave out nulls do
        if "tool_calls" not in message:
            return 1.0
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": call["function"]["arguments"]}
            for call in message["tool_calls"]
        ]


def rewrites(base_url, row):
    messages = [*row["messages"], said(base_url, row["messages"])]
    messages[-1] = {"role": "assistant", "content": "what I would rather have heard"}
    said(base_url, [*messages, {"role": "user", "content": "so?"}])


def begins_anew(base_url, row):
    said(base_url, row["messages"])
    said(base_url, [{"role": "user", "content": "something else"}])


def wanders(base_url, row):
    def user(text):
        return {"role": "user", "content": text}

    asked = row["messages"]
    a = [*asked, said(base_url, asked)]
    b = [*asked, said(base_url, asked)]
    b += [user("again b")]
    b += [said(base_url, b)]
    said(base_url, [*a, user("on a")])
    b += [user("once more b")]
    said(base_url, b)
    return 1.0


def asks_again(base_url, row):
    asked = [*row["messages"], said(base_url, row["messages"]), {"role": "user", "content": "why?"}]
    return float(said(base_url, asked) != said(base_url, asked))


def raises(base_url):
    raise KeyError("no such city")


def silent():
    return 1.0


def tells_refusals(base_url, row):
    """What it is told of requests that cannot be answered."""
    found = {}
    for name, given in {
        "n": ({"n": 3}, "/chat/completions"),
        "path": ({}, "/responses"),
        "tools": ({"tools": ["weather"]}, "/chat/completions"),
        "nameless": ({"tools": [{"type": "function", "function": {}}]}, "/chat/completions"),
        "messages": ({"messages": "hello"}, "/chat/completions"),
    }.items():
        more, path = given
        try:
            ask(base_url, **{"messages": row["messages"], **more, "path": path})
        except urllib.error.HTTPError as error:
            found[name] = f"{error.code} {json.load(error)['error']['message']}"
    row["target"].update(found)
    said(base_url, row["messages"])


refused = threading.Event()


def two_at_once(base_url, row):
    found = []

    def one():
        try:
            found.append(said(base_url, row["messages"])["content"])
        except urllib.error.HTTPError as error:
            found.append(error.code)
            refused.set()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(sorted(map(str, found)) == ["409", "five"])


def streams(base_url, row):
    lines = ask(base_url, row["messages"], stream=True).split("\n\n")
    delta = json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]
    return float(delta["content"] == "five" and lines[1] == "data: [DONE]")


def endless(base_url, row):
    """Asks until it is told that there is no room; knows what it has then."""
    messages, turns = list(row["messages"]), 0
    try:
        while True:
            messages += [said(base_url, messages), {"role": "user", "content": "more"}]
            turns += 1
    except urllib.error.HTTPError as error:
        return float(turns) if json.load(error)["error"]["code"] == "context_length_exceeded" else -1.0


def gives_up(base_url, row):
    """Asks until it is told that there is no room, which it does not expect."""
    messages = list(row["messages"])
    while True:
        messages += [said(base_url, messages), {"role": "user", "content": "more"}]


def gives_up_with_words_of_its_own(base_url, row):
    try:
        gives_up(base_url, row)
    except OSError as error:
        raise RuntimeError("the model does not answer") from error


def fails_at_its_end(base_url, row):
    """Knows what to do when there is no room, and has a fault there."""
    try:
        gives_up(base_url, row)
    except OSError:
        return {}["score"]


async def gives_up_in_a_group(base_url, row):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(gives_up, base_url, row))


def asks_for_what_is_not_there(base_url, row):
    """Another refusal than that of the end."""
    try:
        gives_up(base_url, row)
    except OSError:
        ask(base_url, row["messages"], path="/responses")


def leaves_tools_out(base_url, row):
    """Tells of its tools once, and wants an answer without them in the end."""
    messages = [*row["messages"], said(base_url, row["messages"], tools=[TOOL])]
    said(base_url, [*messages, {"role": "user", "content": "and now?"}])
    return 1.0


def other_tools(base_url, row):
    messages = [*row["messages"], said(base_url, row["messages"], tools=[TOOL])]
    said(base_url, [*messages, {"role": "user", "content": "so?"}], tools=[TOOL, TOOL])
