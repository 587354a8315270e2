"""The mode gap-head: a classifier of several layers as GlobalAveragePool and one, fitted to the old logits."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import run
from fold_models import Floats, arrays, model, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from sklearn.linear_model import Ridge
from sobolewski_light import baseline, counts, rewritten, script

import onnxsep
from onnxsep.modes import Pattern, Refusal, available_modes
from onnxsep.passes.gap_head import GapHead, ridge


class Head:
    """image -> Conv -> Relu -> [pool] -> flatten -> fully connected layers -> logits, as some exporter wrote it.

    Args:
        channels, size: of what the head reads.
        widths: outputs of its layers.
    """

    def __init__(self, channels: int, size: int, widths: list[int], **form: Any) -> None:
        self.channels, self.size, self.widths, self.form = channels, size, widths, form
        rng = np.random.default_rng(form.get("seed", 0))
        pool, flat = form.get("pool"), form.get("flatten", "flatten")
        kept = size // 2 if pool in ("MaxPool", "AveragePool") else 1 if pool else size
        features = channels * kept * kept
        stem = rng.normal(size=(channels, 3, 3, 3))
        self.nodes = [
            helper.make_node("Conv", ["image", "stem"], ["c"], name="stem", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["x"], name="relu"),
        ]
        self.tensors = [tensor("stem", stem)]
        x = "x"
        if pool:
            attributes: dict[str, Any] = (
                {"kernel_shape": [2, 2], "strides": [2, 2]} if not pool.startswith("Global") else {}
            )
            x = self.add(pool, [x], **attributes)
        if form.get("nhwc"):
            x = self.add("Transpose", [x], perm=[0, 2, 3, 1])
        if flat == "flatten":
            x = self.add("Flatten", [x], axis=1)
        elif flat == "reshape":
            self.tensors.append(onnx.numpy_helper.from_array(np.array([-1, features]), "sizes"))
            x = self.add("Reshape", [x, "sizes"])
        else:
            for name, values in (("axis", 0), ("axes", [0]), ("others", [-1])):
                self.tensors.append(onnx.numpy_helper.from_array(np.array(values), name))
            first = self.add("Gather", [self.add("Shape", [x]), "axis"])
            x = self.add("Reshape", [x, self.add("Concat", [self.add("Unsqueeze", [first, "axes"]), "others"], axis=0)])
        before = features
        for number, width in enumerate(widths, 1):
            if number > 1:
                x = self.between(x)
            self.tensors.append(tensor(f"b{number}", rng.normal(size=width)))
            weight = rng.normal(size=(width, before)) / np.sqrt(before)
            if form.get("matmul"):
                self.tensors.append(tensor(f"w{number}", weight.T))
                product = self.add("MatMul", [x, f"w{number}"], name=f"fc{number}")
                x = self.add("Add", [product, f"b{number}"])
            else:
                turned = form.get("turned", 1)
                self.tensors.append(tensor(f"w{number}", weight if turned else weight.T))
                x = self.add("Gemm", [x, f"w{number}", f"b{number}"], name=f"fc{number}", transB=turned)
            before = width
        self.nodes.append(helper.make_node("Softmax", [x], ["probabilities"], name="softmax"))
        self.logits = x

    def between(self, x: str) -> str:
        activation = self.form.get("activation", "Relu")
        if activation == "SiLU":
            x = self.add("Mul", [x, self.add("Sigmoid", [x])])
        elif activation:
            x = self.add(activation, [x])
        return self.add("Dropout", [x]) if self.form.get("dropout") else x

    def add(self, op_type: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name or f"{op_type}_{output}", **attributes))
        return output

    @property
    def proto(self) -> onnx.ModelProto:
        image = value("image", [self.form.get("batch", "n"), 3, self.size, self.size])
        ends = [
            value(name, [image.type.tensor_type.shape.dim[0].dim_value or "n", self.widths[-1]])
            for name in ("probabilities", self.logits)
        ]
        return model(self.nodes, self.tensors, inputs=[image], outputs=ends, opset=self.form.get("opset", 17))


def images(count: int, size: int, seed: int = 1) -> Floats:
    """Each of its own colour, so that means over positions tell them apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 3, 1, 1)) + 0.3 * rng.normal(size=(count, 3, size, size))).astype(np.float32)


def outputs(proto: onnx.ModelProto, name: str, feed: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run([name], {"image": feed})[0]


FORMS: dict[str, dict[str, Any]] = {
    "gemm": {},
    "gemm of [in, out]": {"turned": 0, "dropout": True},
    "matmul + add": {"matmul": True, "flatten": "reshape"},
    "size computed": {"flatten": "computed", "pool": "MaxPool"},
    "size computed, one image": {"flatten": "computed", "batch": 1},
    "max pool": {"pool": "MaxPool"},
    "global pool": {"pool": "GlobalAveragePool", "activation": "HardSwish"},
    "average pool, SiLU": {"pool": "AveragePool", "activation": "SiLU", "matmul": True},
    "nhwc": {"nhwc": True, "flatten": "reshape", "matmul": True, "pool": "MaxPool"},
    "no activation": {"activation": ""},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("verify", ["full", "local"])
def test_whatever_the_exporter_wrote(form: str, verify: Any) -> None:
    head = Head(6, 4, [9, 8, 5], **FORMS[form])
    result = onnxsep.rewrite(head.proto, mode="gap-head", verify=verify)
    made = result.model.proto
    types = [node.op_type for node in made.graph.node]
    assert types == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Softmax"]
    assert sorted(sorted(one.dims) for one in made.graph.initializer) == [[3, 3, 3, 6], [5], [5, 6]]
    row = next(one for one in result.report.convs if one.status == "replaced")
    assert (row.name, row.parameters_after) == ("fc1", 6 * 5 + 5)
    assert made.graph.node[1] == head.proto.graph.node[1]
    again = onnxsep.rewrite(made, mode="gap-head")
    assert again.model.proto.SerializeToString() == made.SerializeToString()


@settings(max_examples=12, deadline=None)
@given(
    channels=st.integers(1, 7),
    size=st.sampled_from([2, 4]),
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    pool=st.sampled_from(["", "MaxPool", "GlobalAveragePool"]),
    matmul=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_heads(channels: int, size: int, widths: list[int], pool: str, matmul: bool, seed: int) -> None:
    head = Head(channels, size, widths, pool=pool, matmul=matmul, seed=seed)
    source = head.proto
    result = onnxsep.rewrite(source, mode="gap-head")
    made = result.model.proto
    classes, totals = widths[-1], result.report.totals
    stem = channels * 27
    assert (totals.replaced, totals.parameters_after) == (1, stem + channels * classes + classes)
    assert outputs(made, head.logits, images(2, size)).shape == (2, classes)
    assert [made.graph.node[at].SerializeToString() for at in (0, 1, -1)] == [
        source.graph.node[at].SerializeToString() for at in (0, 1, -1)
    ]
    assert made.graph.input == source.graph.input
    assert made.graph.output == source.graph.output
    assert onnxsep.rewrite(made, mode="gap-head").report.totals.replaced == 0


def test_linear_heads_are_exact_where_the_mean_is_all_that_they_see() -> None:
    """Without activations, and behind a global pool, the product of the layers is the head itself."""
    head = Head(6, 4, [9, 8, 5], activation="", pool="GlobalAveragePool")
    result = onnxsep.rewrite(head.proto, mode="gap-head")
    feed = images(3, 4)
    expected, found = (outputs(proto, head.logits, feed) for proto in (head.proto, result.model.proto))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert any("needs training" in note for note in result.report.notes)


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(size=(20, 12)) + 3, rng.normal(size=(20, 3))
    targets = rows @ rng.normal(size=(12, 3)) + 5 + noise
    weight, bias = ridge(rows, targets)
    grid = 10.0 ** np.arange(-8, 4) * np.square(np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)).mean()
    errors = []
    for strength in grid:
        left_out = 0.0
        for one in range(20):
            others = np.arange(20) != one
            fitted = Ridge(alpha=strength, solver="svd").fit(rows[others], targets[others])
            left_out += float(np.square(fitted.predict(rows[[one]]) - targets[[one]]).sum())
        errors.append(left_out)
    best = Ridge(alpha=grid[int(np.argmin(errors))], solver="svd").fit(rows, targets)
    np.testing.assert_allclose(weight, best.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias, best.intercept_, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_ridge_with_fewer_samples_than_features(samples: int) -> None:
    rows = np.random.default_rng(0).normal(size=(samples, 8))
    weight, bias = ridge(rows, rows[:, :2])
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def test_with_data_it_is_fitted_to_the_logits(tmp_path: Path) -> None:
    head = Head(6, 4, [16, 8, 5], pool="MaxPool")
    data, unseen = images(400, 4), images(200, 4, seed=2)
    result = onnxsep.rewrite(head.proto, mode="gap-head", data=data)
    assert not any("needs training" in note for note in result.report.notes)
    calibration = result.report.calibration
    assert calibration is not None
    assert (calibration.init, calibration.samples) == ("ridge", 360)
    row = next(one for one in result.report.convs if one.status == "replaced")
    assert row.held_out_error is not None
    assert row.svd_error is not None
    assert row.held_out_error < 0.8 < row.svd_error
    # By the mathematics: ordinary least squares on the same samples cannot be far from it, and the start is.
    wanted, made = (outputs(proto, head.logits, unseen) for proto in (head.proto, result.model.proto))
    features = [outputs_of_stem(head, array) for array in (data, unseen)]
    whole = [np.concatenate([one, np.ones((len(one), 1))], axis=1) for one in features]
    solved = np.linalg.lstsq(whole[0], outputs(head.proto, head.logits, data), rcond=None)[0]
    errors = [float(np.linalg.norm(wanted - found)) for found in (made, whole[1] @ solved)]
    assert errors[0] < 1.05 * errors[1]
    again = onnxsep.rewrite(head.proto, mode="gap-head", data=data)
    assert again.model.proto == result.model.proto


def outputs_of_stem(head: Head, feed: Any) -> Floats:
    proto = head.proto
    proto.graph.output.append(value("x", None))
    found: Floats = np.asarray(outputs(proto, "x", feed), np.float64).mean(axis=(2, 3))
    return found


def test_data_that_do_not_help(tmp_path: Path) -> None:
    head = Head(6, 4, [9, 5])
    data = images(30, 4)
    data[3, 0, 0, 0] = np.nan
    with pytest.raises(onnxsep.OnnxsepError, match=r"NaN or infinity around Gemm 'fc1'|NaN"):
        onnxsep.rewrite(head.proto, mode="gap-head", data=data)
    with pytest.raises(onnxsep.OnnxsepError, match="at least 2 samples"):
        onnxsep.rewrite(head.proto, mode="gap-head", data=images(1, 4))
    with pytest.raises(onnxsep.OnnxsepError, match="mode gap-head has no settings"):
        onnxsep.rewrite(head.proto, mode="gap-head", settings={"pool": "keep"})


# ---------------------------------------------------------------- what is no such head


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    result = onnxsep.rewrite(proto, mode="gap-head")
    assert result.model.proto.SerializeToString() == proto.SerializeToString()
    return {row.name: row.reason for row in result.report.convs}


def test_one_layer_is_no_head_of_several() -> None:
    found = reasons(Head(6, 4, [5], pool="GlobalAveragePool").proto)
    assert found == dict.fromkeys(("stem", "fc1"), "no head of several fully connected layers here")


def test_what_is_used_elsewhere_stays() -> None:
    proto = Head(6, 4, [9, 8, 5]).proto
    hidden = next(node.output[0] for node in proto.graph.node if node.name == "fc2")
    proto.graph.output.append(value(hidden, ["n", 8]))
    assert reasons(proto)["fc1"] == (
        "no head of several fully connected layers: Gemm 'fc2' is not the last layer: what it computes goes on into "
        "Gemm 'fc3', and is an output of the graph"
    )


def test_seven_layers_are_not_taken_for_six() -> None:
    assert "is not the last layer: what it computes goes on into" in reasons(Head(6, 4, [4] * 7).proto)["fc1"]


def test_something_else_between_is_named() -> None:
    proto = Head(6, 4, [9, 8, 5]).proto
    relu = next(node for node in proto.graph.node if node.op_type == "Relu" and node.name != "relu")
    relu.op_type, name = "Exp", relu.name
    assert f"'{name}'" in reasons(proto)["fc2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("alpha", "not W x"),
        ("axis", "its Flatten begins at axis 2, not at the channels"),
        ("perm", "its Transpose is not the one from NCHW to NHWC"),
        ("rows", "which are not all those of one image"),
        ("sizes", "[N, channels, sizes ...]"),
    ],
)
def test_what_is_nearly_one_is_refused(change: str, message: str) -> None:
    if change == "perm":
        proto = Head(6, 4, [9, 5], nhwc=True).proto
        next(node for node in proto.graph.node if node.op_type == "Transpose").attribute[0].ints[:] = [0, 3, 2, 1]
    elif change == "rows":
        proto = Head(6, 4, [9, 5], flatten="reshape", matmul=True).proto
        for one in proto.graph.initializer:
            if one.name == "sizes":
                one.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 48]), "sizes"))
            if one.name == "w1":
                one.CopyFrom(tensor("w1", np.ones((48, 9))))
    else:
        proto = Head(6, 4, [9, 5]).proto
        gemm = next(node for node in proto.graph.node if node.name == "fc2")
        flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
        if change == "alpha":
            gemm.attribute.append(helper.make_attribute("alpha", 2.0))
        elif change == "axis":
            flatten.attribute[0].i = 2
            w1 = next(one for one in proto.graph.initializer if one.name == "w1")
            w1.CopyFrom(tensor("w1", np.ones((9, 16))))
        else:
            for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
                dim.dim_param = "side"
    result = onnxsep.rewrite(proto, mode="gap-head", verify="none")
    assert message in next(row.reason for row in result.report.convs if row.name == "fc1")


# ---------------------------------------------------------------- paper 004


def test_counts_of_v2_v3_and_v4() -> None:
    """The head of V2; then no biases, and N x 1 Convs or depthwise ones."""
    modes = available_modes()
    v2, plan = rewritten(baseline("vgg19"), modes["gap-head"])
    assert counts(v2) == (20_040_522, 398_744_576)
    assert len(plan.replacements) == 1
    plain, plan = rewritten(v2, modes["bias-to-norm"])
    assert len(plan.replacements) == 16
    assert counts(rewritten(plain, modes["spatial"], rank="in")[0]) == (13_103_461, 256_034_816)
    assert counts(rewritten(plain, modes["depthwise"])[0]) == (2_285_413, 46_757_888)


def test_the_stem_of_r4() -> None:
    """DWS(3, 64) in place of 3 x 3: 27 + 192 weights, and nothing else."""
    light, plan = rewritten(baseline("resnet101"), available_modes()["depthwise"], only=("conv1",))
    before = counts(baseline("resnet101"))
    assert counts(light) == (before[0] - 1728 + 27 + 192, before[1] - 32 * 32 * (1728 - 27 - 192))
    assert len(plan.replacements) == 1


def test_the_command_line(tmp_path: Path) -> None:
    onnx.save(Head(6, 4, [9, 8, 5]).proto, tmp_path / "in.onnx")
    done = run("rewrite", "in.onnx", "out.onnx", "--mode", "gap-head", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: mode gap-head: the new head starts as the product of the old layers", done.stdout)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    assert set(arrays(onnx.load(tmp_path / "out.onnx"))) >= {"stem"}


def test_types_of_the_source_stay() -> None:
    """float16: the new weights have that type too."""
    source = Head(6, 4, [9, 5]).proto
    for one in source.graph.initializer:
        if one.data_type == TensorProto.FLOAT:
            one.CopyFrom(tensor(one.name, onnx.numpy_helper.to_array(one), np.float16))
    for end in (*source.graph.input, *source.graph.output):
        end.type.tensor_type.elem_type = TensorProto.FLOAT16
    made = onnxsep.rewrite(source, mode="gap-head").model.proto
    assert {one.data_type for one in made.graph.initializer} == {TensorProto.FLOAT16}


def test_why_not_tells_the_nearest_miss() -> None:
    near = Refusal(
        "head", (0, 3), "Gemm 'a' reads what Exp 'e' computes", {"fc_2": (0, 3), "fc_1": (0, 1)}, whole=False
    )
    assert GapHead().why_not(near) == "no head of several fully connected layers: Gemm 'a' reads what Exp 'e' computes"
    assert isinstance(GapHead.pattern, Pattern)


def test_the_steps_of_v3_run_one_after_the_other() -> None:
    """On the narrow twin: each step is verified in ONNX Runtime, and those behind the head are exact or low-rank."""
    made: Any = script().build("vgg19", width=0.125)
    for mode in ("gap-head", "bias-to-norm", "spatial"):
        more: dict[str, Any] = {"rank": "in", "include_first": True} if mode == "spatial" else {}
        result = onnxsep.rewrite(made, mode=mode, **more)
        assert result.report.verification.ran
        made = result.model
    types = [node.op_type for node in made.proto.graph.node]
    assert (types.count("Conv"), types.count("BatchNormalization"), types.count("Gemm")) == (32, 16, 1)
