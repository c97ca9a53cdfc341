// Are these manifests what Kubernetes, and those who extend it, understand? Every document of the files named
// is read strictly into the types of its API: a key that there is not, or a value of another kind, is a mistake.
// What belongs together is held against each other: selectors and labels, ports, accounts, volumes.
//
// With `-data DIRECTORY`, what ConfigMaps hold is written to DIRECTORY/NAME/KEY.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	data := flag.String("data", "", "where to write what ConfigMaps hold")
	flag.Parse()
	failed := false
	for _, path := range flag.Args() {
		seen, err := file(path, *data)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
			continue
		}
		fmt.Printf("%s: %d objects\n", path, seen)
	}
	if failed || flag.NArg() == 0 {
		os.Exit(1)
	}
}

func file(path, data string) (int, error) {
	opened, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(opened))
	decoder := serializer.NewCodecFactory(known(), serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	var mistakes []error
	for number := 1; ; number++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if isEmpty(string(text)) {
			continue
		}
		object, kind, err := decoder.Decode(text, nil, nil)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("document %d: %w", number, err))
			continue
		}
		objects = append(objects, object)
		if err := named(object); err != nil {
			mistakes = append(mistakes, fmt.Errorf("document %d, %s: %w", number, kind.Kind, err))
		}
	}
	if len(objects) == 0 && len(mistakes) == 0 {
		return 0, errors.New("there is nothing in it")
	}
	for _, object := range objects {
		if config, ok := object.(*core.ConfigMap); ok && data != "" {
			mistakes = append(mistakes, write(filepath.Join(data, config.Name), config.Data))
		}
	}
	return len(objects), errors.Join(append(mistakes, together(objects)...)...)
}

func write(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func isEmpty(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

func named(object runtime.Object) error {
	of, ok := object.(meta.Object)
	if !ok || of.GetName() == "" {
		return errors.New("it has no name")
	}
	return nil
}

// together holds what belongs together against each other, in one file.
func together(objects []runtime.Object) (mistakes []error) {
	for _, object := range objects {
		workload, ok := workloadOf(object)
		if !ok {
			continue
		}
		for _, err := range within(workload, objects) {
			mistakes = append(mistakes, fmt.Errorf("the workload %s: %w", workload.name, err))
		}
	}
	for _, object := range objects {
		if service, ok := object.(*core.Service); ok && !anyPod(service, objects) {
			mistakes = append(mistakes, fmt.Errorf("the Service %s leads to no port of a pod here", service.Name))
		}
	}
	return mistakes
}

// workload is whatever makes pods.
type workload struct {
	namespace, name string
	selector        *meta.LabelSelector
	template        core.PodTemplateSpec
	claims          []core.PersistentVolumeClaim
}

func workloadOf(object runtime.Object) (workload, bool) {
	switch it := object.(type) {
	case *apps.Deployment:
		return workload{it.Namespace, it.Name, it.Spec.Selector, it.Spec.Template, nil}, true
	case *apps.DaemonSet:
		return workload{it.Namespace, it.Name, it.Spec.Selector, it.Spec.Template, nil}, true
	case *apps.StatefulSet:
		return workload{it.Namespace, it.Name, it.Spec.Selector, it.Spec.Template, it.Spec.VolumeClaimTemplates}, true
	}
	return workload{}, false
}

func within(it workload, objects []runtime.Object) (mistakes []error) {
	selector, err := meta.LabelSelectorAsSelector(it.selector)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(it.template.Labels)) {
		mistakes = append(mistakes, errors.New("it selects other pods than it makes"))
	}
	volumes := map[string]bool{}
	for _, claim := range it.claims {
		volumes[claim.Name] = true
	}
	for _, volume := range it.template.Spec.Volumes {
		volumes[volume.Name] = true
		if source := volume.ConfigMap; source != nil && !exists(objects, it.namespace, source.Name, isConfigMap) {
			mistakes = append(mistakes, fmt.Errorf("the ConfigMap %s is not here", source.Name))
		}
	}
	for _, container := range containers(it.template.Spec) {
		for _, mount := range container.VolumeMounts {
			if !volumes[mount.Name] {
				mistakes = append(mistakes, fmt.Errorf("there is no volume %s", mount.Name))
			}
		}
	}
	account := it.template.Spec.ServiceAccountName
	if account != "" && !exists(objects, it.namespace, account, isServiceAccount) {
		mistakes = append(mistakes, fmt.Errorf("the ServiceAccount %s is not here", account))
	}
	return mistakes
}

func containers(pod core.PodSpec) []core.Container {
	return append(append([]core.Container{}, pod.InitContainers...), pod.Containers...)
}

func isConfigMap(object runtime.Object) bool {
	_, ok := object.(*core.ConfigMap)
	return ok
}

func isServiceAccount(object runtime.Object) bool {
	_, ok := object.(*core.ServiceAccount)
	return ok
}

func exists(objects []runtime.Object, namespace, name string, is func(runtime.Object) bool) bool {
	for _, object := range objects {
		of, ok := object.(meta.Object)
		if ok && is(object) && of.GetNamespace() == namespace && of.GetName() == name {
			return true
		}
	}
	return false
}

// anyPod says whether each port of a service leads to one that a pod here has.
func anyPod(service *core.Service, objects []runtime.Object) bool {
	for _, object := range objects {
		it, ok := workloadOf(object)
		if !ok || it.namespace != service.Namespace {
			continue
		}
		selects := labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(it.template.Labels))
		if selects && leads(service, it.template.Spec) {
			return true
		}
	}
	return false
}

func leads(service *core.Service, pod core.PodSpec) bool {
	has := map[string]bool{}
	for _, container := range containers(pod) {
		for _, port := range container.Ports {
			has[port.Name] = true
			has[fmt.Sprint(port.ContainerPort)] = true
		}
	}
	for _, port := range service.Spec.Ports {
		target := port.TargetPort.String()
		if target == "0" {
			target = fmt.Sprint(port.Port)
		}
		if !has[target] {
			return false
		}
	}
	return true
}

// known has the types of Kubernetes, cert-manager, the Prometheus operator and SPIRE's controller manager.
func known() *runtime.Scheme {
	for _, add := range []func(*runtime.Scheme) error{certmanager.AddToScheme, monitoring.AddToScheme} {
		if err := add(scheme.Scheme); err != nil {
			panic(err)
		}
	}
	scheme.Scheme.AddKnownTypes(schema.GroupVersion{Group: "spire.spiffe.io", Version: "v1alpha1"}, &ClusterSPIFFEID{})
	return scheme.Scheme
}

// ClusterSPIFFEID is what SPIRE's controller manager knows of one, as far as its resource definition says. Its
// module is not everywhere to be had.
type ClusterSPIFFEID struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata,omitempty"`

	Spec struct {
		Admin                     bool                `json:"admin,omitempty"`
		AutoPopulateDNSNames      bool                `json:"autoPopulateDNSNames,omitempty"`
		ClassName                 string              `json:"className,omitempty"`
		DNSNameTemplates          []string            `json:"dnsNameTemplates,omitempty"`
		Downstream                bool                `json:"downstream,omitempty"`
		FederatesWith             []string            `json:"federatesWith,omitempty"`
		JWTTTL                    string              `json:"jwtTtl,omitempty"`
		NamespaceSelector         *meta.LabelSelector `json:"namespaceSelector,omitempty"`
		PodSelector               *meta.LabelSelector `json:"podSelector,omitempty"`
		SPIFFEIDTemplate          string              `json:"spiffeIDTemplate"`
		TTL                       string              `json:"ttl,omitempty"`
		WorkloadSelectorTemplates []string            `json:"workloadSelectorTemplates,omitempty"`
	} `json:"spec,omitempty"`
}

// DeepCopyObject is asked for by the scheme; nothing here changes what it has read.
func (id *ClusterSPIFFEID) DeepCopyObject() runtime.Object {
	copied := *id
	return &copied
}
