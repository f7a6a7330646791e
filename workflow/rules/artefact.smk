# Draws tables and figures from rows, each beside the paper's numbers.
#
# Snakemake deletes the outputs of a rule before the rule runs. So a rule writes into the hidden folder NEW, and a rule
# show_... puts its finished files in the place of the last ones. A step that fails leaves those as they are.
NEW = f"{FIGURES}/.new"
LONGEST_NOTEBOOK = "results"
PAPER = [near(ROOT / f"results/paper/{name}.csv") for name in ("values", "claims")]
# Copies, not links: Snakemake sets the time of each output when a rule has ended, and then asks that none is older
# than an input. With links, an input would get the time of a later output.
REPLACE = "cp -- {input:q} {params.folder:q} 2> {log:q}"


rule draw_figure:
    input:
        rows=rows_of,
        paper=lambda wildcards: PAPER,
    output:
        f"{NEW}/{{artefact}}.svg",
        f"{NEW}/{{artefact}}.png",
        f"{NEW}/{{artefact}}.csv",
    log:
        f"{LOGS}/draw-{{artefact}}.log",
    wildcard_constraints:
        artefact=one_of(artefacts_of("figure")),
    params:
        run=DRAWN,
        out=subpath(output[0], parent=True),
        source=lambda wildcards: drawing_code(wildcards.artefact),
    shell:
        "seerbench draw --run {params.run:q} --out {params.out:q} -- {wildcards.artefact:q} > {log:q} 2>&1"


rule show_figure:
    input:
        rules.draw_figure.output,
    output:
        report(
            f"{FIGURES}/{{artefact}}.svg",
            caption="../report/artefact.rst",
            category="Figures",
            labels={"artefact": "{artefact}", "run": PRESET.name},
        ),
        f"{FIGURES}/{{artefact}}.png",
        f"{FIGURES}/{{artefact}}.csv",
    log:
        f"{LOGS}/show-{{artefact}}.log",
    wildcard_constraints:
        artefact=one_of(artefacts_of("figure")),
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
    shell:
        REPLACE


use rule draw_figure as draw_table with:
    output:
        f"{NEW}/{{artefact}}.csv",
        f"{NEW}/{{artefact}}.md",
        f"{NEW}/{{artefact}}.tex",
    wildcard_constraints:
        artefact=one_of(artefacts_of("table")),


use rule show_figure as show_table with:
    input:
        rules.draw_table.output,
    output:
        f"{FIGURES}/{{artefact}}.csv",
        report(
            f"{FIGURES}/{{artefact}}.md",
            caption="../report/artefact.rst",
            category="Tables",
            labels={"artefact": "{artefact}", "run": PRESET.name},
        ),
        f"{FIGURES}/{{artefact}}.tex",
    wildcard_constraints:
        artefact=one_of(artefacts_of("table")),


rule write_report:
    input:
        rows=rows_of_all,
        published=lambda wildcards: sorted(
            map(near, (ROOT / "results/published").glob("*/MANIFEST.json"))
        ),
        paper=lambda wildcards: PAPER,
    output:
        f"{NEW}/report.html",
    log:
        f"{LOGS}/report.log",
    params:
        run=DRAWN,
        source=files_digest(
            [
                *(ROOT / "seerbench/artefacts").glob("*.py"),
                *(ROOT / "seerbench/report").glob("*.py"),
            ]
        ),
    shell:
        "seerbench report --run {params.run:q} --out {output:q} > {log:q} 2>&1"


use rule show_figure as show_report with:
    input:
        rules.write_report.output,
    output:
        f"{FIGURES}/report.html",
    log:
        f"{LOGS}/show-report.log",


rule execute_notebook:
    input:
        source=lambda wildcards: near(ROOT / f"notebooks/{wildcards.notebook}.py"),
        rows=rows_of_all,
        published=lambda wildcards: sorted(
            map(near, (ROOT / "results/published").glob("*/MANIFEST.json"))
        ),
        paper=lambda wildcards: PAPER,
    output:
        f"{NEW}/{{notebook}}.ipynb",
        f"{NEW}/{{notebook}}.html",
    log:
        f"{LOGS}/notebook-{{notebook}}.log",
    wildcard_constraints:
        notebook=one_of([name for name in notebooks() if name != LONGEST_NOTEBOOK]),
    params:
        run=DRAWN,
        out=subpath(output[0], parent=True),
        source=files_digest(
            [
                *(ROOT / "seerbench/report").glob("*.py"),
                *(ROOT / "seerbench/artefacts").glob("*.py"),
            ]
        ),
    shell:
        "seerbench notebook --run {params.run:q} --out {params.out:q} -- {input.source:q} > {log:q} 2>&1"


# It begins before what else is drawn at the end, so that no core waits for it alone.
use rule execute_notebook as execute_longest_notebook with:
    wildcard_constraints:
        notebook=LONGEST_NOTEBOOK,
    priority: 10


use rule show_figure as show_notebook with:
    input:
        rules.execute_notebook.output,
    output:
        f"{FIGURES}/{{notebook}}.ipynb",
        f"{FIGURES}/{{notebook}}.html",
    log:
        f"{LOGS}/show-{{notebook}}.log",
    wildcard_constraints:
        notebook=one_of(notebooks()),
