// What tests ask of Argo Workflows: its linter and its expressions. The module does not hold the user interface, which
// the command `argo` is built with; so this is a program of its own, on the same packages.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/Knetic/govaluate"
	"github.com/argoproj/argo-workflows/v3/cmd/argo/lint"
	"github.com/argoproj/argo-workflows/v3/pkg/apiclient"
	"github.com/argoproj/argo-workflows/v3/util/expr/argoexpr"
	"github.com/argoproj/argo-workflows/v3/util/expr/env"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func run(command string, args []string) error {
	switch command {
	case "lint": // FILE...; as `argo lint --offline` does: exit code 1 when something is wrong
		ctx, client, err := apiclient.NewClientFromOpts(apiclient.Opts{Offline: true, OfflineFiles: args})
		if err != nil {
			return err
		}
		kinds := []string{"workflowtemplates", "workflows"}
		return lint.RunLint(ctx, client, kinds, "simple", true, lint.LintOptions{
			Files: args, Strict: true, DefaultNamespace: "kubeflow", Printer: os.Stdout,
		})
	case "holds": // EXPRESSION SCOPE: whether an expression is true
		scope := map[string]interface{}{}
		if err := json.Unmarshal([]byte(args[1]), &scope); err != nil {
			return err
		}
		holds, err := argoexpr.EvalBool(args[0], env.GetFuncMap(scope))
		fmt.Println(holds)
		return err
	case "when": // CONDITION: whether a task whose `when` this is would run
		condition, err := govaluate.NewEvaluableExpression(args[0])
		if err != nil {
			return err
		}
		runs, err := condition.Evaluate(nil)
		fmt.Println(runs)
		return err
	}
	return fmt.Errorf("%s: allowed: lint, holds, when", command)
}
