"""What a page may say of learners of an actor and a critic: PPO, and IMPALA."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import Field, field_validator

from embodied_rl.config.model import Count, Model, Widths
from embodied_rl.config.types import Fraction, NonNegative, Positive, refuse


class PPOSettings(Model):
    """Proximal policy optimization, and what other learners of an actor and a critic share with it."""

    num_learning_epochs: Annotated[int, Ge(1), Le(1000)] = 5
    num_mini_batches: Count = 4
    reshuffle: bool = Field(
        default=False, description="minibatches of other transitions in each epoch; false: in each iteration, as in rsl_rl"
    )
    clip_param: Positive = 0.2
    gamma: Fraction = 0.99
    lam: Fraction = Field(default=0.95, description="lambda of generalized advantage estimation")
    value_loss_coef: NonNegative = 1.0
    entropy_coef: NonNegative = 0.005
    entropy_schedule: Literal["constant", "linear", "hold"] = Field(
        default="linear", description="how entropy_coef moves to final_entropy_coef, if there is one; see schedule"
    )
    final_entropy_coef: NonNegative | None = Field(
        default=None, description="what entropy_coef is at train.iterations; null: it stays"
    )
    learning_rate: Positive = 1e-3
    schedule: Literal["adaptive", "constant", "linear", "hold"] = Field(
        default="adaptive",
        description="adaptive: the learning rate follows desired_kl; linear: it moves to final_learning_rate at "
        "train.iterations; hold: it does so after a share `hold` of them",
    )
    final_learning_rate: NonNegative | None = Field(
        default=None,
        description="what the learning rate is at train.iterations; null: it falls towards 0, and is held at a tenth of "
        "learning_rate",
    )
    hold: Annotated[float, Ge(0), Lt(1)] = Field(
        default=0.5, description="share of train.iterations before which a schedule `hold` moves nothing"
    )
    desired_kl: Positive = 0.01
    stop_kl: Positive | None = Field(default=None, description="the rest of an iteration is skipped beyond this KL; null: never")
    optimizer: Literal["adam", "rmsprop"] = Field(default="adam", description="rmsprop: A2C's, with alpha 0.99 and eps 1e-5")
    max_grad_norm: Positive = 1.0
    clip_gradient: Literal["network", "all"] = Field(
        default="network", description="whose norm max_grad_norm bounds: each network's, or that of all parameters together"
    )
    use_clipped_value_loss: bool = True
    normalize_advantage: Literal["rollout", "minibatch", "none"] = Field(
        default="rollout", description="over which advantages are brought to mean 0 and standard deviation 1; none: they are not"
    )
    actor_hidden_dims: Widths = (128, 128)
    critic_hidden_dims: Widths = (128, 128)
    activation: Literal[
        "elu", "selu", "relu", "crelu", "lrelu", "tanh", "sigmoid", "softplus", "gelu", "swish", "mish", "identity"
    ] = "elu"
    init_std: Annotated[float, Ge(1e-6), Le(1e6)] = Field(
        default=1.0, description="standard deviation of the actions at the start"
    )
    std_type: Literal["scalar", "log"] = "scalar"
    obs_normalization: bool = True
    rnn_type: Literal["none", "gru", "lstm"] = Field(default="none", description="a recurrent network before the actor's MLP")
    rnn_hidden_dim: Count = 128
    rnn_num_layers: Annotated[int, Ge(1), Le(64)] = 1
    bfloat16: bool = Field(default=False, description="networks of the update compute in bfloat16")
    tf32: bool = Field(default=True, description="a GPU's products round their factors to 10 bits (TensorFloat-32)")
    symmetry: Literal["none", "augmentation", "mirror_loss"] = Field(default="none", description="use of left-right symmetry")
    mirror_loss_coeff: NonNegative = 0.0

    @field_validator("schedule", mode="before")
    @classmethod
    def has_its_name(cls, schedule: Any) -> Any:
        """Say what `fixed` is now."""
        if schedule == "fixed":
            raise refuse('"fixed" is constant now')
        return schedule
