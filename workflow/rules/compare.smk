# Checks and times a kernel or method of your own beside the baselines:
# snakemake --cores all --config compare=mine.py -- compare


rule compare:
    input:
        compared,


rule compare_one:
    input:
        lambda wildcards: COMPARED_FILE if COMPARED_FILE.endswith(".py") else [],
    output:
        RUN.parent / f"compare/cells/{COMPARED_NAME}.parquet",
        RUN.parent / f"compare/samples/{COMPARED_NAME}.parquet",
        f"figures/compare/{COMPARED_NAME}.svg",
        f"figures/compare/{COMPARED_NAME}.png",
        f"figures/compare/{COMPARED_NAME}.csv",
    log:
        f"logs/compare-{COMPARED_NAME}.log",
    threads: WHOLE_MACHINE
    resources:
        gpu=ALL_GPUS,
    params:
        target=COMPARED,
        name=COMPARED_NAME,
        options=compare_options(),
        results=RUN.parent,
        source=TIMED,
    shell:
        "seerbench compare --name {params.name:q} --results {params.results:q} {params.options} -- {params.target:q} 2>&1 | tee {log:q}"
