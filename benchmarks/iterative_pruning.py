"""Table III of paper 004: the weights that survive iterative pruning, 20 % of the remaining ones in each of ten steps.

    python benchmarks/iterative_pruning.py

Counted as ``onnxsep prune --step 0.2`` counts, with the same function: r <- r - round(0.2 r), over all Conv weights
together, from those of configurations R1 (ResNet-101), R11 and R13.
"""

from onnxsep.pruning import surviving_weights

STEP, STEPS = 0.2, 10
CONFIGURATIONS = {"R1": 42_387_136, "R11": 388_587, "R13": 139_511}
"""Weights of all Convs, without linear layers, BatchNormalization and biases."""


def main() -> None:
    """Print the table: a line for each step, the sparsity that it reaches, the weights that are left."""
    left = {name: surviving_weights(weights, STEP, STEPS) for name, weights in CONFIGURATIONS.items()}
    print(f"{'step':>4} {'sparsity':>9} " + " ".join(f"{name:>12}" for name in CONFIGURATIONS))
    print(f"{0:>4} {0:>9.4f} " + " ".join(f"{weights:>12,}" for weights in CONFIGURATIONS.values()))
    for step in range(STEPS):
        sparsity = 1 - left["R1"][step] / CONFIGURATIONS["R1"]
        print(f"{step + 1:>4} {sparsity:>9.4f} " + " ".join(f"{counts[step]:>12,}" for counts in left.values()))


if __name__ == "__main__":
    main()
