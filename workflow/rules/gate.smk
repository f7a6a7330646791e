# Gates on a frozen model, and MoA's profile of one.
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
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["gates"][wildcards.gates],
        source=trains_with("distill.py", "gate.py"),
    shell:
        "seerbench distill {params.where} {wildcards.gates} 2> {log}"


rule profile:
    input:
        reads("profile", "model"),
    output:
        RUN / "plans/moa-{model}.json",
    log:
        f"{LOGS}/profile-{{model}}.log",
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=PRESET.config.get("profile"),
        source=TIMED,
    shell:
        "seerbench profile {params.where} {wildcards.model} 2> {log}"
