"""What is known on the device of every clip: the columns of `state` (B, columns) int32, for all kernels."""

COLUMNS = (
    "PEND_N",  # ids of the last frame's last group, which are fed with the next frame
    "PEND_OFFSET",  # where in the last frame's ring slot they go
    "PEND_POSITION",  # rotary position of the first of them
    "VISUAL_POSITION",  # rotary position of the frame's first visual token
    "GROUP_POSITION",  # rotary position of the first id of every group that is fed while the frame is decoded
    "TOTAL",  # tokens counted so far
    "STEP_OFFSET",  # where in the frame's ring slot the group being fed goes
    "ACTIVE",  # 1: the clip goes on with its frame
    "ROOM",  # ids the frame may still spend
    "SLOTS",  # slots decoded in this frame
)
POSITIONS = ("PEND_POSITION", "VISUAL_POSITION", "GROUP_POSITION", "TOTAL")  # those that count tokens
