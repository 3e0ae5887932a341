"""An engine imports torch's compiler only when something is compiled, and it works as ever then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import sys
from qlora_engine import compiler_later
compiler_later.install(); compiler_later.install()
import torch, bitsandbytes, qlora_engine.training.recipe
is_there = lambda: "torch._dynamo.convert_frame" in sys.modules
weight = torch.nn.Parameter(torch.ones(3))
def train():
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward(); optimizer.step(); optimizer.zero_grad()
"""


def answer_of(script: str) -> list[str]:
    """What `script` prints in a clean interpreter, after `BEGIN`."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_training_imports_no_compiler() -> None:
    assert answer_of("train(); print(is_there(), float(weight.detach()[0]) < 1)") == ["False", "True"]


def test_what_compiles_gets_the_whole_compiler() -> None:
    script = """
train()
twice = torch.compile(lambda x: x * 2, backend="eager")
print(float(twice(torch.ones(1))), is_there())
import torch._dynamo
from torch._dynamo import decorators
print(torch._dynamo.disable is decorators.disable, torch._dynamo.graph_break is decorators.graph_break)
print(sum(name == "torch._dynamo" for name in sys.modules), sys.modules["torch._dynamo"] is torch._dynamo)
train()
"""
    assert answer_of(script) == ["2.0", "True", "True", "True", "1", "True"]


def test_functions_marked_for_the_compiler_are_marked_when_it_comes() -> None:
    script = """
def one(x): return x
def two(x): return x
print(torch._dynamo.allow_in_graph(one) is one, torch._dynamo.assume_constant_result(two) is two, is_there())
torch._dynamo.reset()
from torch._dynamo import trace_rules
print(id(one) in trace_rules._allowed_callable_ids, two._dynamo_marked_constant)
"""
    assert answer_of(script) == ["True", "True", "False", "True", "True"]


def test_a_part_of_it_is_imported_after_the_whole_and_once() -> None:
    script = """
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.variables.base import VariableTracker
import torch._dynamo.variables.base as again
print(is_there(), callable(lookup_backend("eager")), again.VariableTracker is VariableTracker)
print(torch._dynamo.variables.base is again, again.__spec__.origin.endswith("base.py"))
"""
    assert answer_of(script) == ["True"] * 5


def test_a_name_that_the_compiler_lacks_is_missing_then_too() -> None:
    script = """
print(hasattr(torch._dynamo, "__nothing__"), is_there(), hasattr(torch._dynamo, "nothing"), is_there())
"""
    assert answer_of(script) == ["False", "False", "False", "True"]


def test_threads_that_ask_at_once_all_get_it() -> None:
    script = """
import threading
found = []
ask = lambda: found.append(torch._dynamo.optimize)
threads = [threading.Thread(target=ask) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(found), len(set(found)))
"""
    assert answer_of(script) == ["4", "1"]


def test_functions_of_bitsandbytes_are_compiled_when_they_are_called() -> None:
    script = """
from bitsandbytes.backends.default import ops
calls = []
real = torch.compile
print(torch.compile.__module__)
compiled = compiler_later._when_called(lambda f, **settings: calls.append(settings) or f)
@compiled(dynamic=False)
def twice(x): return 2 * x
print(len(calls), twice(2), twice(3), calls[0]["dynamic"], len(calls))
"""
    assert answer_of(script) == ["torch", "0", "4", "6", "False", "1"]
