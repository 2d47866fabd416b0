"""In the place of train_net.py: 40 iterations that take no time, or as long as "slow" is there.

In the folder above those of the runs, "slow" makes them wait between iterations, and a file
"broken" names the upsampler whose runs fail. Runs and their options are noted in "calls".
"""

import json
import sys
import time
from pathlib import Path

arguments = sys.argv[1:]
opts = arguments[arguments.index("SEED") :]
seed, folder = int(opts[1]), Path(opts[3])
study = folder.parents[1]
with (study / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\n")
checkpoint = folder / "last_checkpoint"
start = int(checkpoint.read_text()) if "--resume" in arguments else 0
broken = study / "broken"
if broken.exists() and broken.read_text() in arguments:
    sys.exit("error: it is broken")
value = seed + len(folder.parent.name)
with (folder / "metrics.json").open("a" if start else "w", buffering=1) as file:
    for iteration in range(start, 40):
        checkpoint.write_text(str(iteration + 1))
        file.write(json.dumps({"iteration": iteration, "time": 0.5, "total_loss": 1}) + "\n")
        while iteration == 20 and (study / "slow").exists():
            time.sleep(0.01)
    file.write(json.dumps({"iteration": 40, "bbox/AP": value, "segm/AP": float("nan")}) + "\n")
