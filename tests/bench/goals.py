"""What the figures must reach, by frames a second: the goals that this project set itself for one core, on its seed workload."""

from __future__ import annotations

BEFORE_TO_OURS = {1.0: 4.0, 2.0: 5.5, 4.0: 8.0, 8.0: 10.0}
SEED_TO_OURS = {1.0: 2.2, 2.0: 2.6, 4.0: 3.0, 8.0: 3.4}
OURS_TO_BOUND = {1.0: 1.25, 2.0: 1.35, 4.0: 1.6, 8.0: 2.0}

# Where we want to end.
WISHED = {
    "before ÷ ours": {1.0: 5.0, 2.0: 8.0, 4.0: 12.0, 8.0: 16.0},
    "seed ÷ ours": {1.0: 2.6, 2.0: 3.6, 4.0: 4.5, 8.0: 5.0},
    "ours ÷ bound": {1.0: 1.1, 2.0: 1.2, 4.0: 1.3, 8.0: 1.4},
}

SERVICE_TO_PIPELINE = 1.15
POOL_TO_PIPELINE = 1.10

# vLLM 0.32's render server, CPU of a request on a core of this kind, and the share of it that ours may cost.
RENDER_SERVER_CPU_MS = {1.0: 348.0, 8.0: 1388.0}
RENDER_SERVER_SHARE = 0.4

HF_TO_OURS_ON_IMAGES = 3.0

ESTIMATE_FACTOR = (
    3.0  # deploy/OPERATIONS.md, "Size a deployment"; not two: the rates may come from another machine than this one
)

PROMPT_MS = 5.0
READY_SECONDS = 3.0
WORKER_SECONDS = 1.0
IDLE_MB = 600.0

SHARE_OF_CORES = 0.9
LEFT_OF_SHARE = 0.95  # from 8 callers to 256, by the trend: "no fall", within what a shared machine can tell
HANDOFF_SHARE = 0.10  # issue "The hand-off", transport: of a request, by shared memory to an engine on the same host

# One request at a time, by cores: of the time on one worker. Others may not be slower than that.
ONE_REQUEST = {
    2: {"8 fps": 0.65},
    16: {"8 fps": 0.35, "1 fps": 0.5, "1 minute of 720p at 2 fps": 0.2},
}
FIRST_ROWS_MS = 60.0
