"""Why a steering works: which heads and MLPs carry it, through what, and in which of its dimensions."""
