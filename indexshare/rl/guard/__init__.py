"""An online guard against hacks: rules that miss little, a judge that decides, and a rollout that goes on."""

from indexshare.rl.guard.guard import Decision, Guard, Session
from indexshare.rl.guard.guarded import GuardedEnvironment
from indexshare.rl.guard.judge import Judge, ScriptedJudge, Verdict

__all__ = ["Decision", "Guard", "GuardedEnvironment", "Judge", "ScriptedJudge", "Session", "Verdict"]
