"""How a run is carried out: may change its speed and memory, never its result."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data.section import Section


class Machine(Section):
    """Left out of every fingerprint."""

    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage; above 0 only where memory asks for it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="what the towers compute in; weights stay fp32. auto: bf16 on GPUs that have it, else fp32"
    )
    adam: Literal["auto", "torch", "torch_fused", "deepspeed_fused", "deepspeed_cpu"] = Field(
        "auto", description="which AdamW steps; auto: the fastest that works here"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="pairs a rank takes through the towers at once; each step then encodes twice (gradient caching)",
    )
    recompute: bool = Field(False, description="activation checkpointing: towers keep their blocks' inputs only")
    compile: bool = Field(False, description="torch.compile the towers' blocks; needs a C++ compiler or a GPU with Triton")
    trim_text: Literal["auto", "always", "never"] = Field(
        "auto", description="run captions up to their last end token only; auto: where that is exact"
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        "auto", description="loader processes a rank; auto: 0 on CPU, on GPUs the rank's share of the cores less two"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="of each process on CPU; default: its share of the cores")
    log_steps: int = Field(10, ge=1, description="a row of the journal every so many steps; also when signals are heeded")
    save_minutes: float = Field(10.0, ge=0, description="a checkpoint at least this often; 0: at every row of the journal")
    adopt: bool = Field(
        True, description="take over runs that other studies beside this one have finished; false: do them again"
    )
    max_bad_steps: int = Field(10, ge=1, description="steps in a row without a finite loss after which the run stops")
    timeout_minutes: float = Field(
        30.0, gt=0, le=1e6, description="without progress for so long, a rank names the ranks that it waits for, and ends"
    )
    eval_batch: int = Field(256, ge=1, description="pictures a rank encodes at once in evaluation, at most")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value == "fp16":
            raise ValueError(
                "fp16 is not supported, as its gradients would need scaling; use bf16, or fp32 on a GPU without it"
            )
        return value
