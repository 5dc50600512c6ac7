"""What the scripted model understands."""

from typing import Any

import pytest

from deadlinemesh.llm_proxy.providers.intent import wishes
from deadlinemesh.vocabulary import ToolSpec

TEXT = {"type": "string"}


def tool(name: str, description: str, required: str, **properties: dict[str, Any]) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": required.split()}
    return ToolSpec(name, description, schema)


TOOLS = (
    tool("calculate", "Calculate an arithmetic expression exactly.", "expression", expression=TEXT),
    tool(
        "long_task",
        "Take a while, and tell the progress.",
        "seconds",
        seconds={"type": "number"},
        steps={"type": "integer", "default": 10},
    ),
    tool("crm_lookup", "Looks up a customer in the CRM.", "customer", customer=TEXT),
    tool("market_data", "The latest quote for a ticker symbol.", "symbol", symbol=TEXT),
    tool(
        "vector_search",
        "Searches the knowledge base for documents about a query.",
        "query",
        query=TEXT,
        top_k={"type": "integer", "default": 3},
    ),
    tool("run_python", "Runs Python code in a sandbox.", "code", code=TEXT),
    tool(
        "get_weather",
        "The weather forecast for a city.",
        "city",
        city=TEXT,
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    tool("order_status", "The status of an order.", "order_id", order_id=TEXT),
    tool("fetch_url", "Fetches a web page.", "url", url={"type": "string", "format": "uri"}),
    tool(
        "current_time", "Tell the date and the time in a time zone.", "", timezone={"anyOf": [TEXT, {"type": "null"}]}
    ),
    tool("pause", "Sleeps.", "duration_ms", duration_ms={"type": "integer"}),
)

CASES: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
    ("Run the long task for 20 seconds", [("long_task", {"seconds": 20})]),
    ("long task 3s please", [("long_task", {"seconds": 3})]),
    ("Run the long task for one minute in 4 steps", [("long_task", {"seconds": 60, "steps": 4})]),
    ("Run the long task for 5, 10 and 20 seconds", [("long_task", {"seconds": s}) for s in (5, 10, 20)]),
    ("Sleep for 1.5 seconds", [("pause", {"duration_ms": 1500})]),
    ("What is (17+25)*3?", [("calculate", {"expression": "(17+25)*3"})]),
    ("what is 17 plus 25 times 3", [("calculate", {"expression": "17+25*3"})]),
    ("What is 15% of 240?", [("calculate", {"expression": "15/100*240"})]),
    ("Compute sqrt(16) + 2.", [("calculate", {"expression": "sqrt(16) + 2"})]),
    (
        "Look up customer Globex in the CRM and find the latest quote for ACME",
        [("crm_lookup", {"customer": "Globex"}), ("market_data", {"symbol": "ACME"})],
    ),
    ("Please look up Umbrella Corp in the CRM.", [("crm_lookup", {"customer": "Umbrella Corp"})]),
    ('Who is customer "Stark Industries"?', [("crm_lookup", {"customer": "Stark Industries"})]),
    ("how is acme corp doing?", [("crm_lookup", {"customer": "acme corp"})]),
    ("How is Acme Corp doing?", [("crm_lookup", {"customer": "Acme Corp"})]),
    ("how's globex?", [("crm_lookup", {"customer": "globex"})]),
    ("what's new at umbrella corp", [("crm_lookup", {"customer": "umbrella corp"})]),
    ("what do we know about initech?", [("crm_lookup", {"customer": "initech"})]),
    ("look up customer globex", [("crm_lookup", {"customer": "globex"})]),
    ("look up the customer acme corp please", [("crm_lookup", {"customer": "acme corp"})]),
    ("find the customer called umbrella corp's tickets", [("crm_lookup", {"customer": "umbrella corp"})]),
    ("check globex in the crm", [("crm_lookup", {"customer": "globex"})]),
    ("is northwind a customer?", [("crm_lookup", {"customer": "northwind"})]),
    ("customer record of stark industries", [("crm_lookup", {"customer": "stark industries"})]),
    (
        "look up customer globex in the crm and find the quote for acme",
        [("crm_lookup", {"customer": "globex"}), ("market_data", {"symbol": "ACME"})],
    ),
    (
        "how is acme corp doing and what is 2+2?",
        [("crm_lookup", {"customer": "acme corp"}), ("calculate", {"expression": "2+2"})],
    ),
    ("what's the status of customer globex", [("crm_lookup", {"customer": "globex"})]),
    ("how do i find a customer?", []),
    ("customer satisfaction tips", []),
    ("how are you doing?", []),
    ("how is it going?", []),
    ("how is life?", []),
    ("Get quotes for ACME, INIT and GLBX", [("market_data", {"symbol": s}) for s in ("ACME", "INIT", "GLBX")]),
    ("quote for acme", [("market_data", {"symbol": "ACME"})]),
    ("Search the docs for how retries work", [("vector_search", {"query": "how retries work"})]),
    ("Search for cats and dogs", [("vector_search", {"query": "cats and dogs"})]),
    (
        "Find the top 5 documents about deadline propagation",
        [("vector_search", {"query": "deadline propagation", "top_k": 5})],
    ),
    ("Run this python code: ```\nprint(1+1)\n```", [("run_python", {"code": "print(1+1)"})]),
    ("What's the weather in Paris in fahrenheit?", [("get_weather", {"city": "Paris", "unit": "fahrenheit"})]),
    ("Where is order A-1023?", [("order_status", {"order_id": "A-1023"})]),
    ("Fetch https://example.com/a?b=1 please.", [("fetch_url", {"url": "https://example.com/a?b=1"})]),
    ("What time is it in Europe/Berlin?", [("current_time", {"timezone": "Europe/Berlin"})]),
    ("What time is it?", [("current_time", {})]),
    (
        "Prepare a briefing on Globex: their CRM record, the ACME quote, and any documents about renewal terms.",
        [
            ("crm_lookup", {"customer": "Globex"}),
            ("market_data", {"symbol": "ACME"}),
            ("vector_search", {"query": "renewal terms"}),
        ],
    ),
    (
        "How is Globex doing? Check the CRM and the stock price of GLBX, and work out 12*12.",
        [
            ("crm_lookup", {"customer": "Globex"}),
            ("market_data", {"symbol": "GLBX"}),
            ("calculate", {"expression": "12*12"}),
        ],
    ),
    ("Hello, how are you today?", []),
    ("Tell me a joke", []),
    ("Write a long story about a dragon", []),
    ("", []),
]


@pytest.mark.parametrize(("prompt", "calls"), CASES, ids=[prompt[:40] for prompt, _ in CASES])
def test_a_prompt_is_understood_as_people_mean_it(prompt: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert [(wish.tool, wish.arguments) for wish in wishes(prompt, TOOLS)] == calls


def test_what_comes_then_is_a_step_of_its_own() -> None:
    found = wishes("Find customer Initech, then calculate 3*4", TOOLS)
    assert [(wish.tool, wish.step) for wish in found] == [("crm_lookup", 0), ("calculate", 1)]


def test_the_same_call_is_wished_for_once() -> None:
    assert len(wishes("Get a quote for ACME and the price of ACME", TOOLS)) == 1


def test_a_tool_whose_required_argument_is_not_given_does_not_fit() -> None:
    assert wishes("Run the long task", TOOLS) == []


def test_a_required_argument_falls_back_to_its_default_or_example() -> None:
    task = tool("long_task", "", "seconds", seconds={"type": "number", "default": 7})
    assert wishes("Run the long task", [task])[0].arguments == {"seconds": 7}
    task = tool("long_task", "", "seconds", seconds={"type": "number", "examples": [9]})
    assert wishes("Run the long task", [task])[0].arguments == {"seconds": 9}


def test_when_tools_are_required_one_is_found_for_anything() -> None:
    for prompt in ("blah", "", "Run the long task"):
        assert len(wishes(prompt, TOOLS, must=True)) == 1
        assert len(wishes(prompt, TOOLS[1:2], must=True)) == 1


def test_without_tools_nothing_is_wished_for() -> None:
    assert wishes("What is 1+1?", ()) == []
    assert wishes("What is 1+1?", (), must=True) == []


@pytest.mark.parametrize(
    ("declared", "prompt", "value"),
    [
        ({"type": "array", "items": {"type": "string"}}, "Send labels for Oslo, Rome", ["Oslo", "Rome"]),
        ({"type": "array", "items": {"type": "number"}}, "Send labels 3 8", [3, 8]),
        ({"type": "array", "items": {"enum": ["red", "blue"]}}, "Send red labels", ["red"]),
        ({"type": "boolean"}, "Send it without labels", False),
        ({"type": "boolean"}, "Send it with labels", True),
        ({"type": ["string", "null"], "pattern": "^L-[0-9]+$"}, "Send L-77, thanks", "L-77"),
    ],
)
def test_arguments_of_every_type_are_read(declared: dict[str, Any], prompt: str, value: object) -> None:
    send = tool("send", "Sends.", "labels", labels=declared)
    assert [wish.arguments for wish in wishes(prompt, [send])] == [{"labels": value}]


def test_who_is_asked_about_is_no_argument_of_a_tool_that_takes_nobody() -> None:
    assert (
        wishes("how is acme corp doing?", [tool("get_weather", "The weather forecast for a city.", "city", city=TEXT)])
        == []
    )


def test_a_hostile_pattern_of_a_tool_does_not_hold_the_reading_of_a_prompt() -> None:
    send = tool("send", "Sends.", "label", label={"type": "string", "pattern": "^(L+)+$"})
    assert [wish.arguments for wish in wishes(f"Send {'L' * 500}x LL", [send])] == [{"label": "LL"}]
