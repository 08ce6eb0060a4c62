"""What pyreft relies on of the installed packages beyond their documented interfaces.

Nothing outside this folder names a release or a private interface of torch, transformers,
accelerate or PEFT. Each fact has a probe; what depends on one that does not hold is refused.
"""
