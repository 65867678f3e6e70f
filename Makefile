# hydrad: build, test, try out, install. `make help` lists the targets.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
# The user the services run as. On a machine where Hydra's own queue runner has been running: hydra-queue-runner.
HYDRA_USER ?= hydra
# The program that `make install` installs.
BINARY ?= target/release/hydrad

CARGO ?= cargo
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
SOAK_SECS ?= 600
SOAK_MACHINES ?= 500
.PHONY: help build release deps lint unit check check-units test demo bench soak simulate install uninstall clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Compile for development (target/debug/hydrad)
	$(CARGO) build

release: ## Compile for use (target/release/hydrad)
	$(CARGO) build --release

deps: ## Install what the tests and the demo need and this machine lacks (Debian and its kin; asks for root)
	@tests/scripts/deps.sh

lint:
	@tests/scripts/lint.sh

unit:
	@echo "== unit tests"
	@$(CARGO) test --quiet --lib --bins $(patsubst tests/%.rs,--test %,$(wildcard tests/plan*.rs))

check: lint unit ## Format, clippy, unit tests, plan tables: about a minute

check-units: ## Install into a scratch directory; check systemd units, users, upgrades, uninstall
	@tests/scripts/check-units.sh

# `make check` with every test instead of the unit tests alone; cargo's summaries come last.
test: deps lint check-units ## Everything: dependencies, lint, installation, all tests
	@echo "== all tests"
	@$(CARGO) test --no-fail-fast

demo: ## From a git repository to builds on two machines, and what a commit breaks and mends, with a throw-away database
	@tests/demo/run.sh

bench: release ## Measure loading, throughput, latency (ARGS=... for the benchmark's own arguments)
	@tests/scripts/bench.sh $(ARGS)

soak: ## Ten minutes of a farm of 500 stub machines with restless users: does it stall or leak? (SOAK_SECS=, SOAK_MACHINES=)
	@HYDRAD_SOAK_SECS=$(SOAK_SECS) HYDRAD_SOAK_MACHINES=$(SOAK_MACHINES) $(CARGO) test --release --test soak -- --nocapture

simulate: release ## Run the plan against a made-up build farm (ARGS=... for its size, seed and faults)
	@target/release/hydrad simulate $(ARGS)

# ---- installation

bindir := $(PREFIX)/bin
unitdir := $(PREFIX)/lib/systemd/system
confdir := $(SYSCONFDIR)/hydrad
units := hydrad.service hydrad-queue-runner.service hydrad-evaluator.service hydrad-notify.service hydrad-metrics.socket \
	hydrad-status.socket hydrad-update-gc-roots.service hydrad-update-gc-roots.timer hydrad-prune.service hydrad-prune.timer \
	hydrad-send-stats.service
sharedir := $(PREFIX)/share/hydrad
links := hydra-queue-runner hydra-evaluator hydra-notify hydra-init hydra-update-gc-roots hydra-create-user \
	hydra-send-stats hydra-eval-jobset hydra-eval-jobs
rendered := target/install

# Fill the placeholders of everything under conf/ into $(rendered).
define render
	@rm -rf $(rendered)
	@mkdir -p $(rendered)/systemd
	@cd conf && for file in hydra.conf machines environment hydrad.sysusers hydrad.tmpfiles systemd/*; do \
		sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' -e 's|@HYDRA_USER@|$(HYDRA_USER)|g' \
			"$$file" > "../$(rendered)/$$file"; \
	done
endef

install: ## Install under PREFIX=/usr/local (DESTDIR=, SYSCONFDIR=/etc, HYDRA_USER=hydra); keeps edited configuration
	@test -x $(BINARY) || { echo "$(BINARY) does not exist: run \`make release\` first (without root)" >&2; exit 1; }
	@for name in $(links); do link="$(DESTDIR)$(bindir)/$$name"; \
		if [ -e "$$link" ] && [ "$$(readlink "$$link")" != hydrad ]; then \
			echo "$$link belongs to another program (Hydra's own?); install with another PREFIX, or move it away" >&2; exit 1; \
		fi; done
	$(render)
	@install -d $(DESTDIR)$(bindir) $(DESTDIR)$(unitdir) $(DESTDIR)$(confdir) \
		$(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	@install -m 755 $(BINARY) $(DESTDIR)$(bindir)/hydrad
	@for name in $(links); do ln -sfn hydrad $(DESTDIR)$(bindir)/$$name; done
	@for unit in $(units); do install -m 644 $(rendered)/systemd/$$unit $(DESTDIR)$(unitdir)/$$unit; done
	@install -d $(DESTDIR)$(sharedir)
	@install -m 644 conf/prometheus/alerts.yml $(DESTDIR)$(sharedir)/prometheus-alerts.yml
	@install -m 644 conf/grafana/hydrad.json $(DESTDIR)$(sharedir)/grafana-hydrad.json
	@install -m 644 $(rendered)/hydrad.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/hydrad.conf
	@install -m 644 $(rendered)/hydrad.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/hydrad.conf
	@for name in hydra.conf machines environment; do \
		new=$(rendered)/$$name; old=$(DESTDIR)$(confdir)/$$name; \
		if [ ! -e "$$old" ]; then install -m 644 $$new "$$old"; rm -f "$$old.new"; \
		elif cmp -s $$new "$$old"; then rm -f "$$old.new"; \
		else install -m 644 $$new "$$old.new"; echo "kept $$old; this version's text is in $$old.new"; fi; \
	done
	@echo "installed $(DESTDIR)$(bindir)/hydrad and its units"
	@test -n "$(DESTDIR)" || printf '%s\n' "next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload" \
		"      in nix.conf: trusted-users = root $(HYDRA_USER); then hydrad check, then systemctl enable --now hydrad hydrad-update-gc-roots.timer"

uninstall: ## Remove what install put there (same variables); edited configuration stays
	$(render)
	@rm -f $(DESTDIR)$(bindir)/hydrad $(DESTDIR)$(PREFIX)/lib/sysusers.d/hydrad.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/hydrad.conf
	@for unit in $(units); do rm -f $(DESTDIR)$(unitdir)/$$unit; done
	@rm -f $(DESTDIR)$(sharedir)/prometheus-alerts.yml $(DESTDIR)$(sharedir)/grafana-hydrad.json
	@for name in $(links); do link="$(DESTDIR)$(bindir)/$$name"; \
		if [ "$$(readlink "$$link" || true)" = hydrad ]; then rm -f "$$link"; fi; done
	@for name in hydra.conf machines environment; do \
		old=$(DESTDIR)$(confdir)/$$name; rm -f "$$old.new"; \
		if [ -e "$$old" ]; then if cmp -s $(rendered)/$$name "$$old"; then rm -f "$$old"; else echo "kept $$old: it was edited"; fi; fi; \
	done
	@for dir in $(sharedir) $(confdir) $(unitdir) $(PREFIX)/lib/systemd $(PREFIX)/lib/sysusers.d $(PREFIX)/lib/tmpfiles.d; do \
		rmdir --ignore-fail-on-non-empty $(DESTDIR)$$dir 2>/dev/null || true; done
	@echo "removed hydrad from $(DESTDIR)$(PREFIX)"

clean: ## Remove everything that was compiled
	$(CARGO) clean
