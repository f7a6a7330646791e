# Perplexity, retrieval tasks, block recall, gate maps.
rule perplexity:
    input:
        reads("perplexity", "experiment"),
    output:
        RUN / "perplexity/{experiment}.parquet",
    log:
        f"{LOGS}/perplexity-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/perplexity-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        settings=lambda wildcards: PRESET.config["perplexity"][wildcards.experiment],
        source=TIMED,
    shell:
        "{STEP} perplexity {WHERE} {wildcards.experiment} 2> {log}"


rule tasks:
    input:
        reads("tasks", "experiment"),
    output:
        RUN / "tasks/{experiment}.parquet",
    log:
        f"{LOGS}/tasks-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/tasks-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        settings=lambda wildcards: PRESET.config["tasks"][wildcards.experiment],
        source=TIMED,
    shell:
        "{STEP} tasks {WHERE} {wildcards.experiment} 2> {log}"


rule recall:
    input:
        reads("recall", "experiment"),
    output:
        RUN / "recall/{experiment}.parquet",
    log:
        f"{LOGS}/recall-{{experiment}}.log",
    resources:
        gpu=GPU,
    params:
        settings=lambda wildcards: PRESET.config["recall"][wildcards.experiment],
        source=TIMED,
    shell:
        "{STEP} recall {WHERE} {wildcards.experiment} 2> {log}"


rule maps:
    input:
        reads("maps"),
    output:
        RUN / "maps/maps.parquet",
    log:
        f"{LOGS}/maps.log",
    resources:
        gpu=GPU,
    params:
        settings=PRESET.config.get("maps"),
        source=TIMED,
    shell:
        "{STEP} maps {WHERE} 2> {log}"
