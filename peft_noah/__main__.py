"""``python -m peft_noah``, for launchers such as ``accelerate launch -m peft_noah``."""

from peft_noah.cli import main

main()
