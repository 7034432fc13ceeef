// Command cluster is a Kubernetes control plane and the MPI operator in one binary; the name that it is
// called by chooses the process. All are the real ones; only the operator's health moves to a free port.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	_ "unsafe" // for go:linkname

	"github.com/kubeflow/mpi-operator/cmd/mpi-operator/app"
	"github.com/kubeflow/mpi-operator/cmd/mpi-operator/app/options"
	etcd "go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// The operator listens on 8080 for its health, which tests cannot count on to be free.
//
//go:linkname healthCheckPort github.com/kubeflow/mpi-operator/cmd/mpi-operator/app.healthCheckPort
var healthCheckPort int

func main() {
	name := filepath.Base(os.Args[0])
	if name != "kubectl" && name != "certificates" {
		go endWithCaller()
	}
	if err := run(name, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// endWithCaller ends this process when its standard input is closed, as happens when the tests are killed.
func endWithCaller() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

func run(name string, args []string) error {
	switch name {
	case "certificates":
		return certificates(args[0])
	case "etcd":
		return serveEtcd(args[0], args[1])
	case "mpi-operator":
		return operate(args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case "kubectl":
		util.CheckErr(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()))
		return nil
	}
	return fmt.Errorf("%s is no process of the cluster", name)
}

// certificates writes what the API server needs to be trusted: tls.crt (leaf and authority), tls.key and
// the key that signs service account tokens.
func certificates(folder string) error {
	chain, key, err := cert.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		return err
	}
	accounts, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"tls.crt": chain, "tls.key": key, "accounts.key": accounts} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// serveEtcd keeps its data in a folder and listens on a loopback port. It never syncs to disk: the data has
// to outlive this process, not the machine.
func serveEtcd(folder, port string) error {
	config := etcd.NewConfig()
	config.Dir = folder
	config.LogLevel = "warn"
	config.UnsafeNoFsync = true
	client := url.URL{Scheme: "http", Host: "127.0.0.1:" + port}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	server, err := etcd.StartEtcd(config)
	if err != nil {
		return err
	}
	return <-server.Err()
}

// operate is the operator's own main, with its health served on a free port.
func operate(args []string) error {
	healthCheckPort = 0
	option := options.NewServerOption()
	option.AddFlags(flag.CommandLine)
	if err := flag.CommandLine.Parse(args); err != nil {
		return err
	}
	return app.Run(option)
}
