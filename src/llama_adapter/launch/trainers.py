"""One run on every trainer of `conf/trainer/`: what `plan=true` prints below the plan."""

import re

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llama_adapter.launch.build import plan_run
from llama_adapter.launch.nodes import node
from llama_adapter.plan import Plan
from llama_adapter.plan_report import side_by_side

# What describes one trainer alone, and would make all of them the same one.
OF_ONE_TRAINER = re.compile(
    r"[+~]*(hardware\.|trainer\.(accelerator|devices|num_nodes|strategy)|data\.(micro_batch_size|max_tokens)|sweep=)"
)
# What chooses a recipe: files, and what of the frozen model is trained, as recipes have a learning rate for each.
OF_A_RECIPE = re.compile(r"[+~]*(task|model|adapter|experiment|local)=|adapter\.trained=|model\.architecture")


def plan_report(config: DictConfig, plan: Plan) -> str:
    """The plan, with a warning if its learning rate is far from the recipe's, and the same run on every trainer.

    Args:
        config: of the run, composed by Hydra's command line.
        plan: of the run.
    """
    typed, chosen = list(HydraConfig.get().overrides.task), HydraConfig.get().runtime.choices.trainer
    name = HydraConfig.get().job.config_name
    recipe = compose(name, [argument for argument in typed if OF_A_RECIPE.match(argument)])
    plan.warn_if_far(node(recipe, "optimizer").learning_rate(recipe.data.global_batch_size))
    common = [argument for argument in typed if not OF_ONE_TRAINER.match(argument)]
    plans: dict[str, Plan | str] = {}
    for trainer in GlobalHydra.instance().config_loader().get_group_options("trainer"):
        if trainer == chosen:
            plans[trainer] = plan
            continue
        others = [argument for argument in common if not argument.startswith("trainer=")]
        try:
            plans[trainer] = plan_run(compose(name, [*others, f"trainer={trainer}"]))
        except ValueError as error:
            plans[trainer] = str(error)
    return f"{plan}\n\n{side_by_side(plans, chosen)}"
