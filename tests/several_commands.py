"""Started by torchrun: runs commands one after another in the same processes, which torch connects once.

    torchrun ... several_commands.py COMMANDS.json OUT

COMMANDS.json holds a list of {"folder": ..., "arguments": [...]}; process R leaves OUT.R, a list of {"status": ...,
"stdout": ..., "stderr": ...}.
"""

import json
import os
import sys
from pathlib import Path

import torch
from command_line import run

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    found = []
    for command in json.loads(Path(sys.argv[1]).read_text()):
        done = run(*command["arguments"], cwd=Path(command["folder"]))
        found.append({"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
    Path(f"{sys.argv[2]}.{os.environ['RANK']}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
