OPENMP: bool
ISAS: tuple[str, ...]
ISA: str
ROOT: str
__pyx_capi__: dict[str, object]  # what the other modules use
