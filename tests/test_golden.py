"""Reference graphs: each case is first run, so that the frozen structure is one that computes the right thing."""

from pathlib import Path

import onnx
import pytest
from golden.cases import CASES, FOLDER

import onnxsep
from onnxsep import RuntimeOptions

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits"
MODES = ("depthwise", "spatial")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_case_computes_the_same_at_full_rank(name: str, mode: str) -> None:
    model = CASES[name]()
    onnx.checker.check_model(model, full_check=True)
    result = onnxsep.rewrite(
        model, mode=mode, rank="full", force=True, include_first=True, runtime=RuntimeOptions(optimize=False)
    )
    report = result.report
    if name == "one_dimension" and mode == "spatial":
        assert report.totals.replaced == 0
        return
    assert report.totals.replaced >= 1
    assert report.verification.kind == "full"
    assert report.verification.relative is not None
    assert report.verification.relative < 1e-5
    # The case is worth keeping only if replacing its Convs by something wrong would show.
    wrong = onnxsep.rewrite(model, mode=mode, rank=1, force=True, include_first=True).report.verification
    assert wrong.relative is not None
    assert wrong.relative > 1e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_structure_is_the_reference(name: str, mode: str) -> None:
    result = onnxsep.rewrite(CASES[name](), mode=mode)
    compared = onnxsep.check(result.model, FOLDER / f"{name}_{mode}.txt")
    assert compared.same, "\n".join(str(difference) for part in compared.parts for difference in part.differences)


@pytest.mark.parametrize("mode", MODES)
def test_digits_model_is_the_reference(mode: str) -> None:
    result = onnxsep.rewrite(DIGITS / "digits_cnn.onnx", mode=mode)
    assert onnxsep.check(result.model, DIGITS / f"digits_cnn_{mode}.txt").same


def test_every_reference_belongs_to_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {f"{name}_{mode}" for name in CASES for mode in MODES}
