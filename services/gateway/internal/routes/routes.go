// Package routes knows the REST routes that the protos declare: which methods
// a path has, and what it is called without what varies in it.
package routes

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Route is one method of one path.
type Route struct {
	Method string
	// Template is the path with {names} for what varies.
	Template string
	// RPC is the full name of the method behind it, "" for the gateway's own.
	RPC protoreflect.FullName

	// prefix and suffix are what is around the part that varies; where none
	// does, prefix is all.
	prefix, suffix string
	varies         bool
}

// matches says whether a path is of the route. It is asked of every request,
// several times: a regular expression would be most of its cost.
func (r *Route) matches(path string) bool {
	if !r.varies {
		return path == r.prefix
	}
	return len(path) >= len(r.prefix)+len(r.suffix) && strings.HasPrefix(path, r.prefix) && strings.HasSuffix(path, r.suffix) &&
		!strings.Contains(path[len(r.prefix):len(path)-len(r.suffix)], "/")
}

// Table is every route.
type Table struct{ routes []Route }

// New returns the routes of the services in some files, and the gateway's own,
// which are all read with GET.
func New(own []string, files ...protoreflect.FileDescriptor) (*Table, error) {
	t := &Table{}
	for _, path := range own {
		if err := t.add(http.MethodGet, path, ""); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				if err := t.addRPC(methods.Get(j)); err != nil {
					return nil, err
				}
			}
		}
	}
	// The more of a path is fixed, the more it says about a request.
	slices.SortStableFunc(t.routes, func(a, b Route) int { return cmp.Compare(fixed(b.Template), fixed(a.Template)) })
	return t, nil
}

func fixed(template string) int {
	return len(template) - 100*strings.Count(template, "{") + 50*strings.Count(template, ":")
}

func (t *Table) addRPC(m protoreflect.MethodDescriptor) error {
	rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	if !ok || rule.GetPattern() == nil {
		return nil // by gRPC only
	}
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return t.add(http.MethodGet, p.Get, m.FullName())
	case *annotations.HttpRule_Post:
		return t.add(http.MethodPost, p.Post, m.FullName())
	case *annotations.HttpRule_Put:
		return t.add(http.MethodPut, p.Put, m.FullName())
	case *annotations.HttpRule_Patch:
		return t.add(http.MethodPatch, p.Patch, m.FullName())
	case *annotations.HttpRule_Delete:
		return t.add(http.MethodDelete, p.Delete, m.FullName())
	default:
		return fmt.Errorf("%s: unknown kind of HTTP rule", m.FullName())
	}
}

func (t *Table) add(method, template string, rpc protoreflect.FullName) error {
	r := Route{Method: method, Template: template, RPC: rpc, prefix: template}
	if before, rest, ok := strings.Cut(template, "{"); ok {
		name, after, closed := strings.Cut(rest, "}")
		if !closed || strings.ContainsAny(name, "=*") || strings.Contains(after, "{") {
			return fmt.Errorf("route %s: want one {name} at most", template)
		}
		r.prefix, r.suffix, r.varies = before, after, true
	}
	t.routes = append(t.routes, r)
	return nil
}

// All returns every route.
func (t *Table) All() []Route { return slices.Clone(t.routes) }

// Methods returns the methods that a path has, sorted; none where there is no
// such path.
func (t *Table) Methods(path string) []string {
	var out []string
	for i := range t.routes {
		if r := &t.routes[i]; r.matches(path) && !slices.Contains(out, r.Method) {
			out = append(out, r.Method)
		}
	}
	slices.Sort(out)
	return out
}

// Template returns the name of a path: few names, with no ids in them. A path
// that is no route is "unknown".
func (t *Table) Template(method, path string) string {
	for i := range t.routes {
		if r := &t.routes[i]; r.Method == method && r.matches(path) {
			return r.Template
		}
	}
	return "unknown"
}
