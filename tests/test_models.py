"""The networks of models/: ResNet50V2 as Keras defines it, and the digits network that the project trained."""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from scripts import load_script, run_script, run_script_here
from sklearn.datasets import load_digits

MODELS = Path(__file__).resolve().parents[1] / "models"
DIGITS_MODEL = MODELS / "digits" / "digits_cnn.onnx"

Array = npt.NDArray[Any]


def run_model(model: onnx.ModelProto, feeds: dict[str, Array], *, optimize: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(found) for found in node.attribute if found.name == name)


def stored_elements(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


@pytest.fixture(scope="module")
def resnet() -> ModuleType:
    return load_script(MODELS / "resnet50v2.py")


@pytest.fixture(scope="module")
def small_resnet(resnet: ModuleType) -> onnx.ModelProto:
    model: onnx.ModelProto = resnet.build(seed=0, image_size=64, batch="batch")
    return model


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(7).standard_normal((2, 3, 64, 64), dtype=np.float32)


class TestResNet50V2:
    def test_parameters_are_those_of_keras_and_of_the_paper(self, resnet: ModuleType) -> None:
        def conv(c_in: int, c_out: int, kernel: int, bias: bool) -> int:
            return c_in * c_out * kernel * kernel + (c_out if bias else 0)

        def batch_norm(channels: int) -> int:
            return 4 * channels

        expected = conv(3, 64, 7, bias=True)
        channels = 64
        for filters, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for block in range(blocks):
                expected += batch_norm(channels)
                if block == 0:
                    expected += conv(channels, 4 * filters, 1, bias=True)
                expected += conv(channels, filters, 1, bias=False) + batch_norm(filters)
                expected += conv(filters, filters, 3, bias=False) + batch_norm(filters)
                expected += conv(filters, 4 * filters, 1, bias=True)
                channels = 4 * filters
        expected += batch_norm(channels) + channels * 10 + 10

        assert expected == 23_585_290  # table 1 of the paper
        assert stored_elements(resnet.build(image_size=224)) == expected

    def test_convs_are_where_keras_has_them(self, small_resnet: onnx.ModelProto) -> None:
        kernels: dict[int, list[onnx.NodeProto]] = {}
        for node in small_resnet.graph.node:
            if node.op_type == "Conv":
                kernel = attribute(node, "kernel_shape")
                assert attribute(node, "pads") == [kernel[0] // 2] * 4
                kernels.setdefault(kernel[0], []).append(node)
        assert [node.name for node in kernels[7]] == ["conv1_conv"]
        assert len(kernels[1]) == 16 * 2 + 4
        blocks = [(2, 3), (3, 4), (4, 6), (5, 3)]
        names = [f"conv{stage}_block{block}_2_conv" for stage, count in blocks for block in range(1, count + 1)]
        assert [node.name for node in kernels[3]] == names
        assert all(len(node.input) == 2 for node in kernels[3])  # no bias
        strided = [node.name for node in kernels[3] if attribute(node, "strides") == [2, 2]]
        assert strided == ["conv2_block3_2_conv", "conv3_block4_2_conv", "conv4_block6_2_conv"]

    def test_is_valid(self, small_resnet: onnx.ModelProto) -> None:
        onnx.checker.check_model(small_resnet, full_check=True)
        assert [(entry.domain, entry.version) for entry in small_resnet.opset_import] == [("", 17)]
        assert small_resnet.ir_version == 8

    def test_output_is_finite_and_depends_on_input_and_seed(
        self, resnet: ModuleType, small_resnet: onnx.ModelProto, images: Array
    ) -> None:
        (output,) = run_model(small_resnet, {"image": images})
        assert output.shape == (2, 10)
        assert np.isfinite(output).all()
        np.testing.assert_allclose(output.sum(axis=1), 1.0, rtol=1e-5)
        assert output.max() < 0.9, "the softmax is saturated, so that differences would not show"
        assert np.ptp(output, axis=1).min() > 0.01, "all classes have the same value"
        assert np.abs(output[0] - output[1]).max() > 0.001, "the output does not depend on the input"
        (other,) = run_model(resnet.build(seed=1, image_size=64, batch="batch"), {"image": images})
        assert np.abs(output - other).max() > 0.01

    def test_logits_are_what_the_softmax_reads(
        self, resnet: ModuleType, small_resnet: onnx.ModelProto, images: Array
    ) -> None:
        (logits,) = run_model(resnet.build(image_size=64, batch=2, softmax=False), {"image": images})
        (predictions,) = run_model(small_resnet, {"image": images})
        exponentials = np.exp(logits)
        np.testing.assert_allclose(predictions, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-4)

    def test_first_pool_pads_with_zeros(self, small_resnet: onnx.ModelProto, images: Array) -> None:
        """As Keras does. The stem's bias is made so negative that the zeros of the padding are the largest values.

        The graph optimisations are off: Pad_Fusion of ONNX Runtime moves the zeros into the MaxPool, which then pads
        with minus infinity.
        """
        model = onnx.ModelProto()
        model.CopyFrom(small_resnet)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1_conv.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(64, -100.0, np.float32), bias.name))
        model.graph.output.append(helper.make_tensor_value_info("pool1_pool", onnx.TensorProto.FLOAT, None))
        pooled = run_model(model, {"image": images}, optimize=False)[1]
        assert pooled.shape == (2, 64, 16, 16)
        assert (pooled[:, :, 0] == 0).all()
        assert (pooled[:, :, :, 0] == 0).all()
        assert (pooled[:, :, 1:, 1:] < 0).all()

    def test_seed_decides_every_byte(self, resnet: ModuleType, small_resnet: onnx.ModelProto) -> None:
        again = resnet.build(seed=0, image_size=64, batch="batch")
        other = resnet.build(seed=1, image_size=64, batch="batch")
        assert again.SerializeToString() == small_resnet.SerializeToString()
        # Every weight depends on the seed.
        same = [
            first.name
            for first, second in zip(small_resnet.graph.initializer, other.graph.initializer, strict=True)
            if first.raw_data == second.raw_data
        ]
        assert same == []

    def test_other_types_hold_the_same_weights_rounded(self, resnet: ModuleType, small_resnet: onnx.ModelProto) -> None:
        half = resnet.build(image_size=64, batch="batch", dtype=np.float16)
        onnx.checker.check_model(half, full_check=True)
        for single, rounded in zip(small_resnet.graph.initializer, half.graph.initializer, strict=True):
            expected = numpy_helper.to_array(single).astype(np.float16)
            np.testing.assert_array_equal(numpy_helper.to_array(rounded), expected)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"image_size": 31}, "image_size"),
            ({"classes": 0}, "classes"),
            ({"batch": 0}, "batch"),
            ({"batch": ""}, "batch"),
            ({"dtype": np.int32}, "dtype"),
        ],
    )
    def test_refuses_bad_arguments(self, resnet: ModuleType, options: dict[str, Any], word: str) -> None:
        with pytest.raises(ValueError, match=word):
            resnet.build(**options)

    def test_command_line_writes_what_build_makes(self, tmp_path: Path, small_resnet: onnx.ModelProto) -> None:
        out = tmp_path / "resnet.onnx"
        done = run_script(MODELS / "resnet50v2.py", out, "--image-size", "64", "--batch", "batch")
        assert done.returncode == 0, done.stderr
        assert "23,585,290 parameters" in done.stdout
        assert onnx.load(out) == small_resnet

    def test_command_line_refuses_without_traceback(self, tmp_path: Path) -> None:
        out = tmp_path / "resnet.onnx"
        usage = run_script(MODELS / "resnet50v2.py", out, "--image-size", "8")
        assert usage.returncode == 2
        assert "at least 32" in usage.stderr
        no_folder = run_script(MODELS / "resnet50v2.py", tmp_path / "missing" / "resnet.onnx", "--image-size", "32")
        assert no_folder.returncode == 1
        assert "cannot write" in no_folder.stderr
        assert "Traceback" not in usage.stderr + no_folder.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def split() -> Any:
    """Training and test images, each with the attributes images and labels."""
    return load_script(MODELS / "digits" / "data.py").load_split()


@pytest.fixture(scope="module")
def digits_model() -> onnx.ModelProto:
    return onnx.load(DIGITS_MODEL)


class TestDigits:
    def test_split_is_complete_disjoint_and_stratified(self, split: Any) -> None:
        train, test = split
        parts = np.concatenate([train.images, test.images]).reshape(-1, 64) * 16
        assert sorted(parts.tolist()) == sorted(load_digits().data.tolist())
        assert 0.20 <= len(test.labels) / len(parts) <= 0.25 + 1e-3
        for digit in range(10):
            total = np.sum(train.labels == digit) + np.sum(test.labels == digit)
            assert abs(np.sum(test.labels == digit) - total * len(test.labels) / len(parts)) <= 1
        seen = {image.tobytes() for image in train.images}
        assert not any(image.tobytes() in seen for image in test.images)
        assert train.images.min() == 0
        assert train.images.max() == 1

    def test_model_is_valid_and_small(self, digits_model: onnx.ModelProto) -> None:
        onnx.checker.check_model(digits_model, full_check=True)
        assert DIGITS_MODEL.stat().st_size < 1_500_000
        assert 150_000 <= stored_elements(digits_model) <= 300_000

    def test_model_reaches_its_accuracy(self, digits_model: onnx.ModelProto, split: Any) -> None:
        _, test = split
        (logits,) = run_model(digits_model, {"image": test.images})
        accuracy = float(np.mean(logits.argmax(axis=1) == test.labels))
        assert accuracy >= 0.98
        stated = {entry.key: entry.value for entry in digits_model.metadata_props}["test_accuracy"]
        # Another runtime may sum in another order and decide one image at the border differently.
        assert abs(float(stated) - accuracy) < 1.5 / len(test.labels)

    def test_batch_is_free(self, digits_model: onnx.ModelProto, split: Any) -> None:
        _, test = split
        (together,) = run_model(digits_model, {"image": test.images[:5]})
        for index in range(5):
            (alone,) = run_model(digits_model, {"image": test.images[index : index + 1]})
            np.testing.assert_allclose(alone[0], together[index], rtol=1e-4, atol=1e-5)

    def test_model_says_where_it_comes_from(self, digits_model: onnx.ModelProto) -> None:
        metadata = {entry.key: entry.value for entry in digits_model.metadata_props}
        wanted = {"task", "data_set", "data_licence", "licence", "input_scaling", "test_split", "test_accuracy", "seed"}
        assert wanted <= metadata.keys()
        assert all(metadata.values())
        assert digits_model.doc_string

    def test_committed_graph_is_what_the_script_writes(self, digits_model: onnx.ModelProto) -> None:
        graph = load_script(MODELS / "digits" / "graph.py")
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in digits_model.graph.initializer}
        metadata = {entry.key: entry.value for entry in digits_model.metadata_props}
        assert graph.build(weights, metadata=metadata, doc_string=digits_model.doc_string) == digits_model
        weights["stem_conv.bias"] = np.zeros(31, np.float32)
        with pytest.raises(ValueError, match=r"stem_conv\.bias"):
            graph.build(weights, metadata={}, doc_string="")

    def test_evaluate_prints_the_accuracy(self, digits_model: onnx.ModelProto, split: Any) -> None:
        _, test = split
        (logits,) = run_model(digits_model, {"image": test.images})
        correct = int(np.sum(logits.argmax(axis=1) == test.labels))
        done = run_script(MODELS / "digits" / "evaluate.py", DIGITS_MODEL)
        assert done.returncode == 0, done.stderr
        assert f"{correct} of {len(test.labels)}" in done.stdout
        assert f"{correct / len(test.labels):.2%}" in done.stdout

    def test_evaluate_refuses_bad_files_without_traceback(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"not a model")
        for path in (tmp_path / "missing.onnx", broken):
            done = run_script_here(MODELS / "digits" / "evaluate.py", path, cwd=tmp_path)
            assert done.returncode == 1
            assert str(path) in done.stderr
            assert "Traceback" not in done.stderr
