# Gates on a frozen model, trained here or released; what MoA and MInference search for one.
RELEASED = [
    name for name in PRESET.gate_jobs() if "source" in PRESET.config["gates"][name]
]


rule import_gates:
    output:
        RUN / "gates/{gates}.safetensors",
    log:
        f"{LOGS}/import-gates-{{gates}}.log",
    wildcard_constraints:
        gates="|".join(RELEASED) or "none",
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["gates"][wildcards.gates],
        source=trains_with("models/released_gates.py"),
    shell:
        "seerbench import-gates {params.where} {wildcards.gates} 2> {log}"


rule distill:
    input:
        reads("distill", "gates"),
    output:
        RUN / "gates/{gates}.safetensors",
        RUN / "training/distill-{gates}.parquet",
    log:
        f"{LOGS}/distill-{{gates}}.log",
    benchmark:
        f"{LOGS}/cost/distill-{{gates}}.jsonl"
    wildcard_constraints:
        gates="|".join(name for name in PRESET.gate_jobs() if name not in RELEASED)
        or "none",
    resources:
        gpu=lambda wildcards: GPU * processes(wildcards.gates),
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["gates"][wildcards.gates],
        source=trains_with("training/distill.py", "methods/gate.py", "methods/gate_losses.py", "training/fsdp.py"),
        launcher=lambda wildcards: launcher(processes(wildcards.gates)),
    shell:
        "{params.launcher}seerbench distill {params.where} {wildcards.gates} 2> {log}"


rule profile:
    input:
        reads("profile", "model"),
    output:
        PRESET.moa_plans("{model}"),
    log:
        f"{LOGS}/profile-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/profile-{{model}}.jsonl"
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=[PRESET.config.get("profile"), PRESET.moa_sparsities()],
        source=TIMED,
    shell:
        "seerbench profile {params.where} {wildcards.model} 2> {log}"


rule patterns:
    input:
        reads("patterns", "model"),
    output:
        RUN / "plans/minference-{model}.json",
    log:
        f"{LOGS}/patterns-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/patterns-{{model}}.jsonl"
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=PRESET.config.get("profile"),
        source=TIMED,
    shell:
        "seerbench patterns {params.where} {wildcards.model} 2> {log}"
