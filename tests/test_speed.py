"""What makes it fast is there: counted in graphs, not timed."""

import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

import bitlib
from bitlib.checkpoint import Architecture
from bitlib.model import UNITS
from tests.conftest import PEAK, needs_proc, random_arrays

pytestmark = pytest.mark.slow

NORMS, CONVOLUTIONS = 3 * 5 + 1, 1 + 3 * 5 + 4  # of units (1, 2, 1, 1)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory, small_arrays):
    """The nodes of the exported graphs, live and frozen."""
    folder = tmp_path_factory.mktemp("graphs")
    np.savez(folder / "small.npz", **small_arrays)
    model = bitlib.load(folder / "small.npz")
    found = {}
    for freeze in (False, True):
        loaded = tf.saved_model.load(str(bitlib.export(model, folder / str(freeze), freeze=freeze)))
        graph = loaded.signatures["serving_default"].graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        found[freeze] = nodes
    return found, len(model.variables)


def count(nodes):
    return Counter(node.op for node in nodes)


def test_each_kernel_is_standardised_once(graphs):
    nodes, _ = graphs
    live = count(nodes[False])
    # The functions of a SavedModel hold the graph once for each way to call it.
    copies = live["MaxPool"]
    assert live["Rsqrt"] == copies * (NORMS + CONVOLUTIONS)
    assert live["Conv2D"] == copies * (CONVOLUTIONS + 1)


def test_a_frozen_graph_standardises_nothing_and_reads_no_variable(graphs):
    nodes, _ = graphs
    frozen = count(nodes[True])
    copies = frozen["MaxPool"]
    assert frozen["Rsqrt"] == copies * NORMS
    assert frozen["ReadVariableOp"] == 0
    assert frozen["VarHandleOp"] == 0


def test_a_frozen_graph_computes_two_halves_at_a_time(graphs):
    nodes, _ = graphs
    loops = [node for node in nodes[True] if node.op in ("While", "StatelessWhile")]
    assert loops
    assert all(node.attr["parallel_iterations"].i == 2 for node in loops)


def test_a_compiled_graph_has_xla_for_each_norm(tmp_path, small_npz):
    path = bitlib.export(bitlib.load(small_npz), tmp_path / "m", freeze=True, jit_compile=True)
    library = tf.saved_model.load(str(path)).signatures["serving_default"].graph.as_graph_def().library
    by_xla = {function.signature.name for function in library.function if "_XlaMustCompile" in function.attr}
    calls = [
        n.attr["f"].func.name for function in library.function for n in function.node_def if "f" in n.attr
    ]
    copies = sum(node.op == "MaxPool" for function in library.function for node in function.node_def)
    assert sum(name in by_xla for name in calls) == copies * NORMS


def test_each_variable_is_read_once(graphs):
    nodes, variables = graphs
    live = count(nodes[False])
    assert live["ReadVariableOp"] <= live["MaxPool"] * variables


def test_no_feature_map_becomes_five_dimensional(small_npz):
    model = bitlib.load(small_npz)
    function = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    graph = function.get_concrete_function().graph
    ranks = [output.shape.rank for node in graph.get_operations() for output in node.outputs]
    assert max(rank for rank in ranks if rank is not None) == 4


def test_sums_over_pixels_are_products(small_npz):
    """No reduction of a whole feature map but the last pool's, and one of the images, which carries NaN."""
    model = bitlib.load(small_npz)
    function = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    graph = function.get_concrete_function().graph
    reduced = [node.inputs[0].shape.rank for node in graph.get_operations() if node.type == "Mean"]
    assert reduced.count(4) == 2


@needs_proc
def test_memory_of_a_port(tmp_path):
    """Loaded, checked and exported, an R50x1 takes three times its file: weights, graphs, the check."""
    path = tmp_path / "x.npz"
    np.savez(path, **random_arrays(Architecture(UNITS[50], 1, 1000)))
    code = f"""
        import bitlib, bitlib.savedmodel
        before = peak()
        bitlib.port({str(path)!r}, {str(tmp_path / "x")!r})
        print(peak() - before)
    """
    code = PEAK + textwrap.dedent(code)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(run.stdout.split()[-1]) / (path.stat().st_size / 2**20) < 3.1
